"""Keeps the C library from sitting on memory that was freed.

glibc raises its mmap threshold to the largest block it has seen freed (up to 32 MiB) and gives
every thread an arena of its own; freed batches and decoded images then stay resident. Fixing the
thresholds returns large blocks to the system at once.

Source: ``mallopt(3)``.
"""

from __future__ import annotations

import ctypes
import sys

from s2a_edge.spec.units import KIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 128 * KIB
_MAX_HEAPS = 2


def return_freed_memory() -> bool:
    """Fix glibc's thresholds for this process; False where there is no ``mallopt``."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGE_BYTES,
        _M_TRIM_THRESHOLD: _LARGE_BYTES,
        _M_ARENA_MAX: _MAX_HEAPS,
    }
    return all([mallopt(option, value) == 1 for option, value in settings.items()])


def trim_heap() -> None:
    """Give the system what the C library holds of freed small blocks, where it can."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
