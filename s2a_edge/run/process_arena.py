"""The arena that all sessions of a process on the CPU allocate from, and its hard limit."""

from __future__ import annotations

import onnxruntime as ort

from s2a_edge.run.installed_runtime import runtime_version
from s2a_edge.run.runtime_errors import RUNTIME_ERRORS
from s2a_edge.spec.errors import InternalError

INT32_MAX = 2**31 - 1  # initial_chunk_size_bytes is an int32 in OrtArenaCfg
MAX_DEAD_BYTES_PER_CHUNK = 1024  # split a chunk rather than waste more than this
# From this version on a process may register another arena.
ARENA_REPLACEABLE = "1.23"

# One arena can be registered per process and provider; this is the limit it was given.
_registered_limit_bytes: int | None = None


def register_arena(limit_bytes: int) -> None:
    """Give the process its arena. From onnxruntime 1.23 on, new sessions get the newest one.

    Raises:
        InternalError: there is one with another limit, and this onnxruntime keeps it for good.
    """
    global _registered_limit_bytes
    if _registered_limit_bytes == limit_bytes and not can_replace_arena():
        return
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    config = ort.OrtArenaCfg(
        {
            "max_mem": limit_bytes,
            "initial_chunk_size_bytes": min(limit_bytes, INT32_MAX),
            "arena_extend_strategy": 0,
            "max_dead_bytes_per_chunk": MAX_DEAD_BYTES_PER_CHUNK,
        }
    )
    try:
        ort.create_and_register_allocator(memory, config)
    except RUNTIME_ERRORS as error:
        if "already been registered" not in str(error):
            raise
        raise InternalError(
            where=f"onnxruntime {ort.__version__}",
            expected=f"an arena of {limit_bytes} bytes",
            got=f"this process already has one of {_registered_limit_bytes} bytes, for good",
            todo="train each bundle in a process of its own (onnxruntime 1.23 lifts this)",
        ) from error
    _registered_limit_bytes = limit_bytes


def can_replace_arena() -> bool:
    """Whether a new arena may be registered; an older one, once used, would not hold its limit."""
    return runtime_version(ort.__version__) >= runtime_version(ARENA_REPLACEABLE)
