"""What ONNX Runtime throws, translated into errors that say what happened and what to do.

Exception classes and wording differ between versions: a run through an IOBinding throws
``RuntimeError``, other calls throw classes that derive from ``Exception`` directly, and some of
those classes do not exist in 1.19. Only the text tells an exhausted arena from the rest.
"""

from __future__ import annotations

import re
from pathlib import Path

from onnxruntime.capi import onnxruntime_pybind11_state as state

from s2a_edge.spec.errors import (
    BudgetError,
    BundleError,
    DataError,
    DeviceError,
    InternalError,
    S2AError,
)

RUNTIME_ERRORS: tuple[type[BaseException], ...] = (
    RuntimeError,
    MemoryError,
    *(
        getattr(state, name)
        for name in (
            "EPFail",
            "EngineError",
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "NoModel",
            "NoSuchFile",
            "NotFound",
            "NotImplemented",
            "RuntimeException",
        )
        if hasattr(state, name)
    ),
)

TERMINATED = "terminate flag"
_NODE = re.compile(r"while running (\S+) node\. Name:'([^']*)'")
_ARENA = re.compile(r"Available memory of (\d+) is smaller than requested bytes of (\d+)")
_BUFFER = re.compile(r"Failed to allocate memory for requested buffer of size (\d+)")
_INDEX = re.compile(r"idx=(-?\d+) must be within the inclusive range \[-?\d+,(-?\d+)\]")
_EXHAUSTED = re.compile(r"bad_alloc|out of memory|Failed to allocate memory|CUDA failure 2\b")


def run_error(error: BaseException, graph: str) -> S2AError:
    """Translate what a run threw.

    Exhausted memory is a :class:`BudgetError`, an index that the data holds and no table has a
    :class:`DataError`.
    """
    text = str(error)
    node = _NODE.search(text)
    where = f"{graph}: node {node[2]!r} ({node[1]})" if node else graph
    exhausted = _exhausted(text, where, isinstance(error, MemoryError))
    if exhausted is not None:
        return exhausted
    index = _INDEX.search(text)
    if index is not None:
        return DataError(
            where=where,
            expected=f"indices up to {index[2]}, such as token ids of the model's vocabulary",
            got=index[1],
            todo="give the ids that the model's own tokenizer makes",
        )
    return InternalError(
        where=where, expected="the graph runs", got=_first_line(text), todo="report this"
    )


def load_error(error: BaseException, path: Path) -> S2AError:
    """Translate what making a session threw."""
    text = str(error)
    exhausted = _exhausted(text, f"{path.name}: loading", isinstance(error, MemoryError))
    if exhausted is not None:
        return exhausted
    if "cpu_ep_fallback" in text or "fallback to CPU" in text or "CUDA" in text:
        return DeviceError(
            where=path.name,
            expected="every operator of the graph in the CUDA provider",
            got=_first_line(text),
            todo="use the cpu provider, or pack again with a newer s2a-edge",
        )
    return BundleError(
        where=path.name,
        expected="a graph that this onnxruntime can run",
        got=_first_line(text),
        todo="check the bundle with `sha256sum -c SHA256SUMS`, then pack it again",
    )


def _exhausted(text: str, where: str, certain: bool) -> BudgetError | None:
    arena = _ARENA.search(text)
    if arena is not None:
        available_bytes, requested_bytes = int(arena[1]), int(arena[2])
        got = f"{requested_bytes} bytes asked for with {available_bytes} bytes left to grow"
        missing_bytes = requested_bytes - available_bytes
    elif certain or _EXHAUSTED.search(text):
        buffer = _BUFFER.search(text)
        got = f"no memory for {buffer[1]} bytes" if buffer else _first_line(text)
        missing_bytes = int(buffer[1]) if buffer else 0
    else:
        return None
    return BudgetError(
        where=where,
        expected="the run stays within its memory limit",
        got=got,
        todo="use a smaller micro-batch or a larger budget; the last checkpoint is intact",
        missing_bytes=missing_bytes,
    )


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
    return line[:300]
