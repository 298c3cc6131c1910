"""The arena on pages of 2 MiB where the kernel grants them.

Rows of a wide activation lie on pages of their own, and a product walks over thousands of rows: on
4 KiB pages much of the time goes into address translation. The arena is one region that lives as
long as the process, the case that huge pages are made for. Whatever the kernel answers, the
results are the same.

Source: ``madvise(2)``, MADV_HUGEPAGE; admin-guide/mm/transhuge of the Linux kernel.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

from s2a_edge.spec.units import MIB

HUGE_PAGE_BYTES = 2 * MIB
_MADV_HUGEPAGE = 14
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Range = tuple[int, int]


def advise_huge_pages(allocate: Callable[[], None], *, least_bytes: int,
                      maps: Path = Path("/proc/self/maps"), enabled: Path = _ENABLED) -> int:
    """Asks for huge pages for the memory that ``allocate`` makes the process map.

    Args:
        allocate: maps the region, and touches little of it: touched pages stay small. Not called
            where the kernel would not listen.
        least_bytes: smaller new mappings are left alone.
        maps: where the kernel lists the mappings of this process.
        enabled: the kernel's setting; nothing is done unless it is ``madvise``.

    Returns:
        Bytes for which the kernel took the advice; 0 where it has no such pages.
    """
    if not _on_request(enabled):
        return 0
    before = _anonymous(maps)
    allocate()
    fresh = _difference(_anonymous(maps), before)
    return sum(_advise(start, stop) for start, stop in fresh if stop - start >= least_bytes)


def advise_range(start: int, stop: int, *, enabled: Path = _ENABLED) -> int:
    """Asks for huge pages between two addresses of a mapping; bytes for which the kernel agreed."""
    return _advise(start, stop) if _on_request(enabled) else 0


def _on_request(enabled: Path) -> bool:
    """Whether huge pages are given to those who ask (``always`` gives them anyway)."""
    try:
        return sys.platform.startswith("linux") and "[madvise]" in enabled.read_text("ascii")
    except OSError:
        return False


def _anonymous(maps: Path) -> list[Range]:
    """Private anonymous writable mappings, in order of address."""
    found = []
    for line in maps.read_text("utf-8", errors="replace").splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 5 and words[1] == "rw-p":
            start, _, stop = words[0].partition("-")
            found.append((int(start, 16), int(stop, 16)))
    return found


def _difference(after: list[Range], before: list[Range]) -> list[Range]:
    """What ``after`` covers and ``before`` does not: a new mapping may have joined an old one."""
    fresh: list[Range] = []
    for start, stop in after:
        for old_start, old_stop in before:
            if old_stop <= start or old_start >= stop:
                continue
            if old_start > start:
                fresh.append((start, old_start))
            start = min(old_stop, stop)
        if start < stop:
            fresh.append((start, stop))
    return fresh


def _advise(start: int, stop: int) -> int:
    """Advises the whole huge pages between two addresses; the bytes of them, 0 if refused."""
    first = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    size_bytes = stop // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES - first
    if size_bytes <= 0:
        return 0
    libc = ctypes.CDLL(None)
    refused = libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size_bytes), _MADV_HUGEPAGE)
    return 0 if refused else size_bytes


__all__ = ["HUGE_PAGE_BYTES", "advise_huge_pages", "advise_range"]
