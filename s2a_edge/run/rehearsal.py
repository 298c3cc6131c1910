"""Runs one graph in this process, under an arena limit, and reports what it took.

``python -m s2a_edge.run.rehearsal`` reads one JSON request on stdin and prints one JSON answer; a
process is used once, because its arena limit and its memory peak belong to it for good. Where what
is measured stands for a training it is ``s2a-edge rehearse``, with the command line loaded too.

Request::

    {"graph": PATH,                    weights.bin lies beside it
     "inputs": PATH.npz | {"random": SEED},
     "arena_bytes": N | null,          limit of the runtime's arena
     "pool_bytes": N | null,           limit of the pool beside it; absent: none
     "threads": N | null,
     "provider": "cpu" | "cuda",       absent: cpu
     "own_weights": true | false,      whether the session reads weights.bin itself; absent: true.
                                       false: as in training, which keeps it out of the arena of
                                       onnxruntime 1.19; the graph lies in a whole bundle
     "kernels": PATH | null,           library of kernels in C; absent: none
     "repeat": N,
     "outputs": PATH.npz | null,       where to write the outputs of the last run
     "profile": PATH | null}           start of a file name for the runtime's profile; absent: none

Answer: ``{"ok": true, ...}`` with the fields of :class:`Measurement`, or ``{"ok": false, "error",
"out_of_memory", "failed_node", "disk", ...}`` with what was measured until then (``disk``: what a
full or failing one says). The exit status is 0 in both cases, 2 for a request that cannot be read.

As in training, every input is bound, outputs are preallocated outside the arena, and an output
``NAME_out.X`` shares its memory with the input ``NAME.X`` (``NAME_out`` with ``NAME``), which is
filled anew before every run.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import re
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2a_edge.run.device_tensor import Array, DeviceTensor, Provider
from s2a_edge.run.engine import Engine
from s2a_edge.run.graph import Graph, Port
from s2a_edge.run.installed_runtime import runtime_name
from s2a_edge.run.mapped_files import resident_bytes
from s2a_edge.run.process_memory import read_memory, reset_peak
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError, DataError, S2AError, StorageError, UsageError

_POSITIVE = ("correction", "weight")
_IN_PLACE = re.compile(r"_out(\.|$)")
_KEYS = {"graph", "inputs", "arena_bytes", "pool_bytes", "threads", "repeat", "outputs", "kernels",
         "own_weights", "profile", "provider"}
_KERNEL_TIME = "_kernel_time"
_NODE = re.compile(r"node '([^']*)'")


@dataclass(frozen=True)
class Request:
    """What to run; see the module's text."""

    graph: Path
    inputs: Path | int
    arena_bytes: int | None
    threads: int | None
    repeat: int
    outputs: Path | None
    kernels: Path | None = None
    profile: Path | None = None
    provider: Provider = "cpu"
    pool_bytes: int | None = None
    own_weights: bool = True


@dataclass
class Measurement:
    """What was measured, all of it in this process.

    The mapped weights are left out everywhere but in ``file_bytes`` and ``vm_hwm_bytes``: a budget
    counts them once, as the size of their file.

    Attributes:
        onnxruntime: its version.
        runtime_base_bytes: resident with Python, NumPy and onnxruntime, before the session; the
            library code that is touched later is included.
        session_bytes: anonymous memory that creating the session added.
        bound_bytes: size of the bound inputs and outputs.
        process_peak_bytes: peak of resident memory without the mapped weights.
        anon_peak_bytes: the anonymous part of it.
        file_bytes: resident mapped files at the end, weights included.
        weights_bytes: the part of ``file_bytes`` that is ``weights.bin``.
        vm_hwm_bytes: the kernel's peak of the whole process.
        step_ms: duration of each run.
        cpu_ms: processor time of each run, over all threads; other work on the machine hardly
            changes it, but threads that wait by spinning count in full.
        node_ms: with a profile, the least time of each node; memory then is the profiler's, too.
    """

    onnxruntime: str = ""
    runtime_base_bytes: int = 0
    session_bytes: int = 0
    bound_bytes: int = 0
    process_peak_bytes: int = 0
    anon_peak_bytes: int = 0
    file_bytes: int = 0
    weights_bytes: int = 0
    vm_hwm_bytes: int = 0
    step_ms: list[float] = dataclasses.field(default_factory=list)
    cpu_ms: list[float] = dataclasses.field(default_factory=list)
    node_ms: dict[str, float] = dataclasses.field(default_factory=dict)


def read_request(text: str) -> Request:
    """Parse a request.

    Raises:
        UsageError: it is not the JSON object described above.
    """
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or not value.keys() <= _KEYS:
            raise TypeError(f"an object with keys among {sorted(_KEYS)}")
        inputs = value["inputs"]
        return Request(
            graph=Path(value["graph"]),
            inputs=int(inputs["random"]) if isinstance(inputs, dict) else Path(inputs),
            arena_bytes=None if value.get("arena_bytes") is None else int(value["arena_bytes"]),
            threads=None if value.get("threads") is None else int(value["threads"]),
            repeat=int(value.get("repeat", 1)),
            outputs=None if value.get("outputs") is None else Path(value["outputs"]),
            kernels=None if value.get("kernels") is None else Path(value["kernels"]),
            profile=None if value.get("profile") is None else Path(value["profile"]),
            pool_bytes=None if value.get("pool_bytes") is None else int(value["pool_bytes"]),
            provider="cuda" if value.get("provider") == "cuda" else "cpu",
            own_weights=bool(value.get("own_weights", True)),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            where="rehearsal request on stdin",
            expected="one JSON object: graph, inputs, arena_bytes, threads, repeat, outputs",
            got=f"{type(error).__name__}: {error}",
            todo="see the docstring of s2a_edge.run.rehearsal",
        ) from error


def rehearse(request: Request) -> dict[str, object]:
    """Run the request; errors of ours become part of the answer."""
    measured = Measurement(onnxruntime=runtime_name())
    reset_peak()
    try:
        _measure(request, measured)
    except S2AError as error:
        node = _NODE.search(error.where)
        failure: dict[str, object] = {
            "ok": False,
            "error": str(error),
            "out_of_memory": isinstance(error, BudgetError),
            "failed_node": node[1] if node else None,
            "disk": error.got if isinstance(error, StorageError) else None,
        }
        return {**failure, **dataclasses.asdict(measured)}
    return {"ok": True, **dataclasses.asdict(measured)}


def _load_what_training_loads() -> None:
    """A budget is for the process of ``s2a-edge train``: progress and images included."""
    for name in ("s2a_edge.run.trainer", "s2a_edge.run.engine_choice", "numpy.random",
                 "typer", "rich.progress", "rich.table"):
        importlib.import_module(name)
    for kind in ("JPEG", "PNG"):  # code of the decoders becomes resident as it runs
        with io.BytesIO() as file:
            Image.new("RGB", (64, 64)).save(file, kind)
            Image.open(file).resize((48, 48), Image.Resampling.BICUBIC).load()


def _measure(request: Request, measured: Measurement) -> None:
    _load_what_training_loads()
    before = read_memory()
    measured.runtime_base_bytes = before.rss_bytes
    weights = None if request.own_weights else _weights_beside(request.graph)
    engine = Engine(arena_limit_bytes=request.arena_bytes, weights=weights,
                    pool_limit_bytes=request.pool_bytes, threads=request.threads,
                    kernels=request.kernels, profile=request.profile,
                    provider=request.provider)
    graph = engine.load(request.graph)
    session_bytes = read_memory().anon_bytes - before.anon_bytes
    measured.session_bytes = max(0, session_bytes)
    inputs = {name: engine.tensor(port.shape, port.dtype) for name, port in graph.inputs.items()}
    outputs = _outputs(engine, graph, inputs)
    measured.bound_bytes = _size_bytes({**inputs, **outputs})
    graph.bind(inputs, outputs)
    shared = {id(tensor) for tensor in outputs.values()}
    in_place = [name for name, tensor in inputs.items() if id(tensor) in shared]
    _fill(inputs, graph.inputs, request.inputs, list(inputs))
    for run in range(request.repeat):
        if run:
            _fill(inputs, graph.inputs, request.inputs, in_place)
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        graph.run()
        measured.step_ms.append(1000 * (time.perf_counter() - start_s))
        measured.cpu_ms.append(1000 * (time.process_time() - start_cpu_s))
    _measure_peak(measured, before.anon_bytes, request.graph.parent / "weights.bin")
    if request.profile is not None:
        measured.node_ms = node_times(graph.end_profile())
    if request.outputs is not None:
        arrays: dict[str, Any] = {name: tensor.read() for name, tensor in outputs.items()}
        try:
            np.savez(request.outputs, **arrays)
        except OSError as error:
            raise StorageError(where=str(request.outputs), expected="room for the outputs",
                               got=error.strerror or str(error), todo="free space") from error


def _weights_beside(graph: Path) -> dict[str, Array]:
    return Bundle.open(graph.parent, verify=False).weights()


def _measure_peak(measured: Measurement, base_anon_bytes: int, weights: Path) -> None:
    """Split the peak: after the first run no file page is new, so it is anonymous + file now."""
    after = read_memory()
    measured.file_bytes = after.file_bytes
    measured.weights_bytes = resident_bytes(weights)
    measured.vm_hwm_bytes = after.peak_rss_bytes
    libraries_bytes = after.file_bytes - measured.weights_bytes
    measured.runtime_base_bytes = base_anon_bytes + libraries_bytes
    measured.process_peak_bytes = after.peak_rss_bytes - measured.weights_bytes
    measured.anon_peak_bytes = after.peak_rss_bytes - after.file_bytes - after.shmem_bytes


def node_times(profile: Path) -> dict[str, float]:
    """The least time in ms of each node over the runs in a profile, whose file is removed."""
    least: dict[str, float] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL_TIME):
            node, ms = name.removesuffix(_KERNEL_TIME), event["dur"] / 1000
            least[node] = min(ms, least.get(node, ms))
    profile.unlink()
    return least


def _outputs(
    engine: Engine, graph: Graph, inputs: Mapping[str, DeviceTensor]
) -> dict[str, DeviceTensor]:
    """Preallocated outputs; ``acc_out.x`` is ``acc.x`` where the graph has such an input."""
    outputs = {}
    for name, port in graph.outputs.items():
        shared = inputs.get(_IN_PLACE.sub(r"\1", name, count=1))
        outputs[name] = shared if shared is not None else engine.tensor(port.shape, port.dtype)
    return outputs


def _size_bytes(tensors: Mapping[str, DeviceTensor]) -> int:
    """Bytes of distinct tensors."""
    return sum({id(t): t.size_bytes for t in tensors.values()}.values())


def _fill(
    inputs: Mapping[str, DeviceTensor],
    ports: Mapping[str, Port],
    source: Path | int,
    names: Sequence[str],
) -> None:
    """Write inputs one by one: no second copy of all of them shall raise the peak."""
    if isinstance(source, int):
        for name in names:
            inputs[name].write(_random(ports[name], source))
        return
    try:
        with np.load(source) as archive:
            for name in names:
                inputs[name].write(_checked(archive, ports[name], source))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            where=str(source),
            expected="an .npz of the graph's inputs",
            got=str(error),
            todo="write it with numpy.savez",
        ) from error


def _checked(archive: Mapping[str, Array], port: Port, source: Path) -> Array:
    value = archive.get(port.name)
    if value is None or value.shape != port.shape:
        raise DataError(
            where=f"{source}: {port.name}",
            expected=f"{port.dtype}{list(port.shape)}",
            got="nothing" if value is None else str(list(value.shape)),
            todo="give every input of the graph",
        )
    return value


def _random(port: Port, seed: int) -> Array:
    """Values of a kind that every graph takes: normal floats (positive for ``v``), zero indices."""
    if not np.issubdtype(port.dtype, np.floating):
        return np.zeros(port.shape, port.dtype)
    drawn: Array = np.random.default_rng(seed).standard_normal(port.shape).astype(port.dtype)
    return np.abs(drawn) if port.name.startswith(_POSITIVE) or port.name == "v" else drawn


def main() -> int:
    """Serve one request."""
    try:
        request = read_request(sys.stdin.read())
    except UsageError as error:
        print(json.dumps({"ok": False, **error.as_dict()}))
        return error.exit_code
    print(json.dumps(rehearse(request)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
