"""A loaded graph, its ports, and the one way to run it: everything bound, nothing copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from s2a_edge.run.device_tensor import DeviceTensor
from s2a_edge.run.pool import Pool
from s2a_edge.run.runtime_errors import RUNTIME_ERRORS, TERMINATED, run_error
from s2a_edge.spec.errors import BundleError, S2AError
from s2a_edge.spec.pool_ports import pool_offset

_DTYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


FATAL_ONLY = 4  # log severity: the errors we raise say it once, in our words


class RunControl:
    """Lets another thread end the run in progress; shared by all graphs of an engine.

    ``before_first_run`` is called once, before any of the graphs runs.
    """

    def __init__(self) -> None:
        self.before_first_run: Callable[[], None] | None = None
        self.run_options, self.whole_run_options = _run_options(), _run_options()
        self.reason: S2AError | None = None

    def terminate(self, reason: S2AError) -> None:
        """End the run after its current node; that run, and any later one, raises ``reason``."""
        self.reason = reason
        self.run_options.terminate = True

    def rearm(self) -> None:
        """Allow runs again after :meth:`terminate`."""
        self.run_options.terminate = False
        self.reason = None


def _run_options() -> Any:
    options = ort.RunOptions()
    options.log_severity_level = FATAL_ONLY
    return options


@dataclass(frozen=True)
class Port:
    """One input or output of a graph; the shape is static."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Graph:
    """A session and the tensors bound to it.

    Args:
        name: for messages, the file's stem.
        session: an ``onnxruntime.InferenceSession``.
        control: shared by all graphs of an engine; can end a run.
        pool: shared by all graphs of an engine: where outputs with a planned place lie.
        kept: initializers that the session was given; it only points at their memory.

    Raises:
        BundleError: a port has a dynamic shape or a type this runtime does not feed, or a place
            that is not planned.
        InternalError: a place is beyond the pool that other graphs run in already.
    """

    def __init__(
        self,
        name: str,
        session: Any,
        control: RunControl,
        pool: Pool,
        *,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.inputs = {port.name: port for port in _ports(name, session.get_inputs())}
        outputs = _ports(name, session.get_outputs())
        self.outputs = {port.name: port for port in outputs if pool_offset(port.name) is None}
        """Outputs to be bound by the caller; those in the pool are not among them."""
        self._placed = [port for port in outputs if port.name not in self.outputs]
        self._pool = pool  # its memory stays where it is, and as long as anyone holds the pool
        for port in self._placed:
            pool.reserve(name, pool_offset(port.name) or 0, port.size_bytes)
        self._session = session
        self._kept = kept
        self._control = control
        self._binding: Any = session.io_binding()
        self._bound: dict[str, DeviceTensor] = {}

    def bind(self, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """Bind every port. One tensor bound as input and output is updated in place.

        Raises:
            BundleError: a port stays unbound, is unknown, or differs in shape or dtype.
        """
        for ports, tensors, bind in (
            (self.inputs, inputs, self._binding.bind_input),
            (self.outputs, outputs, self._binding.bind_output),
        ):
            self._check(ports, tensors)
            for name, tensor in tensors.items():
                bind(name, tensor.provider, 0, tensor.dtype, tensor.shape, tensor.address)
        self._bound = {**inputs, **outputs}  # keeps the memory alive as long as the binding

    def run(self, *, whole: bool = False) -> None:
        """Run once on the bound tensors.

        Args:
            whole: not to be ended by :meth:`RunControl.terminate`: what it updates in place would
                be left half done.

        Raises:
            BudgetError: the arena is exhausted; the graph can be run again.
            S2AError: whatever :meth:`RunControl.terminate` was given.
            InternalError: the runtime failed in another way.
        """
        prepare, self._control.before_first_run = self._control.before_first_run, None
        if prepare is not None:
            prepare()
        self._bind_placed()
        control = self._control
        options = control.whole_run_options if whole else control.run_options
        try:
            self._session.run_with_iobinding(self._binding, options)
        except RUNTIME_ERRORS as error:
            if self._control.reason is not None and TERMINATED in str(error):
                raise self._control.reason from error
            raise run_error(error, self.name) from error

    def _bind_placed(self) -> None:
        """Binds outputs in the pool before the first run: by then its size is known."""
        if not self._placed:
            return
        address, provider = self._pool.address(), self._pool.provider
        for port in self._placed:
            self._binding.bind_output(port.name, provider, 0, port.dtype, port.shape,
                                      address + (pool_offset(port.name) or 0))
        self._placed = []

    def end_profile(self) -> Path:
        """Ends the profile of an engine that was asked for one; the file with it."""
        return Path(self._session.end_profiling())

    def _check(self, ports: Mapping[str, Port], tensors: Mapping[str, DeviceTensor]) -> None:
        if ports.keys() != tensors.keys():
            self._refuse(
                f"ports {_some(ports.keys() - tensors.keys())}",
                f"no such port for {_some(tensors.keys() - ports.keys())}",
            )
        for name, tensor in tensors.items():
            port = ports[name]
            if (port.shape, port.dtype) != (tensor.shape, tensor.dtype):
                self._refuse(
                    f"{name} {tensor.dtype}{list(tensor.shape)}",
                    f"{port.dtype}{list(port.shape)} in the graph",
                )

    def _refuse(self, expected: str, got: str) -> None:
        raise BundleError(
            where=f"{self.name}.onnx",
            expected=expected,
            got=got,
            todo="manifest and graphs do not belong together: pack the bundle again",
        )


def _ports(graph: str, args: Any) -> list[Port]:
    ports = []
    for arg in args:
        shape = tuple(arg.shape)
        if arg.type not in _DTYPES or not all(isinstance(length, int) for length in shape):
            raise BundleError(
                where=f"{graph}.onnx: {arg.name}",
                expected="a dense tensor of static shape",
                got=f"{arg.type}{list(arg.shape)}",
                todo="pack the bundle again",
            )
        ports.append(Port(arg.name, np.dtype(_DTYPES[arg.type]), shape))
    return ports


def _some(names: set[str], limit: int = 5) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return (", ".join(listed[:limit]) or "none") + more
