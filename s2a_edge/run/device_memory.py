"""Memory of the CUDA device, asked of CUDA's own runtime library without importing anything for it.

``cudaMemGetInfo`` makes the process's context if there is none yet, so two readings around it tell
what the context takes. Where the GPU shares the machine's memory (a Jetson) the same bytes go
missing in ``MemAvailable``; the larger of the two differences is what counts.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from s2a_edge.run.process_memory import available_bytes
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.onnx_smallest import negation_model

# cudaDeviceAttr of driver_types.h: the device is integrated with the host's memory.
_INTEGRATED = 18
_START_TIMEOUT_S = 120  # the first start of CUDA compiles and caches kernels on some boards
_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of the device now.

    Attributes:
        free_bytes: what can still be had.
        total_bytes: all of it.
        integrated: it is the host's memory (Jetson).
    """

    free_bytes: int
    total_bytes: int
    integrated: bool


@dataclass(frozen=True)
class ContextCost:
    """What CUDA took when it started.

    Attributes:
        size_bytes: of context and libraries.
        after: memory of the device behind it.
    """

    size_bytes: int
    after: DeviceMemory


class CudaRuntime:
    """The functions of libcudart that are needed here.

    Args:
        library: the loaded library.
        where: its name, for errors.
    """

    def __init__(self, library: ctypes.CDLL, where: str) -> None:
        self._library, self._where = library, where

    def memory(self) -> DeviceMemory:
        """Memory of device 0; makes a context if the process has none.

        Raises:
            DeviceError: CUDA refuses, as it does without a driver or a device.
        """
        free, total, integrated = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_int()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        self._call("cudaDeviceGetAttribute", ctypes.byref(integrated), _INTEGRATED, 0)
        return DeviceMemory(free.value, total.value, bool(integrated.value))

    def devices(self) -> int:
        """How many devices there are; makes no context.

        Raises:
            DeviceError: there is no driver.
        """
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise DeviceError(where=f"{self._where}: {name}", expected="a CUDA device",
                              got=f"CUDA error {status}",
                              todo="check the driver and the device (`s2a-edge doctor`), or use "
                              "--engine cpu")


def cuda_runtime(names: Iterable[str] | None = None) -> CudaRuntime:
    """The CUDA runtime that this process has mapped, or else the system's.

    Args:
        names: what to try instead.

    Raises:
        DeviceError: there is none that works with the driver.
    """
    tried = list(names) if names is not None else [*_mapped(), *_NAMES]
    refused: DeviceError | None = None
    for name in tried:
        try:
            runtime = CudaRuntime(ctypes.CDLL(name), name)
            runtime.devices()
            return runtime
        except OSError:
            continue
        except DeviceError as error:  # of another version than the driver, perhaps
            refused = error
    raise refused or DeviceError(
        where="CUDA", expected="its runtime library", got=f"none of {', '.join(tried)}",
        todo="install CUDA's runtime beside onnxruntime-gpu, or use --engine cpu")


def _mapped(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Files of libcudart in this process: the one that onnxruntime uses, wherever it lies."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = (line.split(maxsplit=5)[-1] for line in lines if "libcudart" in line)
    return list(dict.fromkeys(paths))


def context_cost(runtime: CudaRuntime, start: Callable[[], object] = lambda: None) -> ContextCost:
    """Start CUDA and say what that took.

    Args:
        runtime: of this process, which has no context yet.
        start: makes what else starts with the first session: cuBLAS, cuDNN.

    Raises:
        DeviceError: there is no device.
    """
    before_bytes = available_bytes()
    first = runtime.memory()  # makes the context
    started = start()  # kept, with what it holds
    after = runtime.memory()
    taken_bytes = max(0, first.free_bytes - after.free_bytes)
    if after.integrated:
        taken_bytes = max(taken_bytes, before_bytes - available_bytes())
    else:
        # Discrete memory was untouched by us before: what is gone of an idle device is ours.
        taken_bytes = max(taken_bytes, after.total_bytes - after.free_bytes)
    del started
    return ContextCost(max(0, taken_bytes), after)


def measured_in_a_process() -> ContextCost:
    """What CUDA takes here, found by a process of its own: a context cannot be given back.

    Raises:
        DeviceError: there is no device, or CUDA does not start.
    """
    made = subprocess.run([sys.executable, "-m", "s2a_edge.run.device_memory"], check=False,
                          capture_output=True, text=True, timeout=_START_TIMEOUT_S)
    lines = made.stdout.splitlines()
    if made.returncode or not lines:
        said = (made.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DeviceError(where="CUDA", expected="a device that starts", got=said,
                          todo="check the driver and the device (`s2a-edge doctor`), or use "
                          "--engine cpu")
    fields = json.loads(lines[-1])
    return ContextCost(fields["size_bytes"], DeviceMemory(**fields["after"]))


def _start_session() -> object:
    """The smallest graph on CUDA: cuBLAS and the provider's library start with a session."""
    session = onnxruntime.InferenceSession(negation_model(), providers=["CUDAExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)})
    return session


def main() -> None:
    """Prints the cost of a context as JSON."""
    try:
        runtime = cuda_runtime()
        cost = context_cost(runtime, _start_session)
    except DeviceError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main()


__all__ = ["ContextCost", "CudaRuntime", "DeviceMemory", "context_cost", "cuda_runtime",
           "measured_in_a_process"]
