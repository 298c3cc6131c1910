"""Offsets for buffers of known lifetimes in one piece of memory, as small as can be found.

Placing intervals of different heights in the least total height is NP-hard (dynamic storage
allocation). Greedy placement, the largest first, each at the lowest gap that holds it best, comes
within some per cent of the live bytes; the buffer at the top is then tried first, many times over.

Source: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference"
(arXiv 2001.03288), greedy by size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_ROUNDS = 100
# Memory over live bytes at which a layout is good enough.
_GOOD_RATIO = 1.01


@dataclass(frozen=True)
class Interval:
    """A buffer alive in the steps [start, end), of ``size_bytes`` > 0."""

    start: int
    end: int
    size_bytes: int


@dataclass(frozen=True)
class Layout:
    """Where each interval lies, and what all of them need together; bytes."""

    offsets: tuple[int, ...]
    size_bytes: int


def lay_out(intervals: Sequence[Interval], *, alignment_bytes: int) -> Layout:
    """Offsets at which no two intervals that are alive together overlap.

    Args:
        intervals: in any order; empty lifetimes are not allowed.
        alignment_bytes: of every offset.
    """
    aligned = [Interval(i.start, i.end, -(-i.size_bytes // alignment_bytes) * alignment_bytes)
               for i in intervals]
    numbers = range(len(aligned))
    keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda n: (-aligned[n].size_bytes, aligned[n].start),
        lambda n: (-aligned[n].size_bytes, -aligned[n].start),
        lambda n: (-aligned[n].size_bytes, aligned[n].start - aligned[n].end),
        lambda n: (aligned[n].start - aligned[n].end, -aligned[n].size_bytes),
    )
    orders = [sorted(numbers, key=key) for key in keys]
    order, best = min(((order, _place(aligned, order)) for order in orders),
                      key=lambda made: made[1].size_bytes)
    tried = best
    enough = _GOOD_RATIO * live_peak_bytes(aligned)
    for _ in range(_MOST_ROUNDS):
        if best.size_bytes <= enough:
            break
        top = next(n for n in order
                   if tried.offsets[n] + aligned[n].size_bytes == tried.size_bytes)
        order = [top, *(n for n in order if n != top)]
        tried = _place(aligned, order)
        best = min(best, tried, key=lambda layout: layout.size_bytes)
    return best


def quick_size_bytes(intervals: Sequence[Interval]) -> int:
    """The memory of one greedy layout, the largest first; sizes should be aligned."""
    order = sorted(range(len(intervals)),
                   key=lambda n: (-intervals[n].size_bytes, intervals[n].start))
    return _place(intervals, order).size_bytes


def live_peak_bytes(intervals: Sequence[Interval]) -> int:
    """The most bytes alive at once; no layout is smaller."""
    changes: dict[int, int] = {}
    for one in intervals:
        changes[one.start] = changes.get(one.start, 0) + one.size_bytes
        changes[one.end] = changes.get(one.end, 0) - one.size_bytes
    live = peak = 0
    for step in sorted(changes):
        live += changes[step]
        peak = max(peak, live)
    return peak


def _place(intervals: Sequence[Interval], order: Sequence[int]) -> Layout:
    """Each in turn into the smallest gap that holds it, or on top of those it meets."""
    offsets = np.zeros(len(intervals), np.int64)
    # Of those that are placed, in the order of placing: start, end, offset, offset after it.
    placed = np.zeros((4, len(intervals)), np.int64)
    most = 0
    for count, number in enumerate(order):
        one = intervals[number]
        start, end, low, high = placed[:, :count]
        met = (start < one.end) & (end > one.start)
        offset = _lowest(low[met], high[met], one.size_bytes)
        offsets[number] = offset
        placed[:, count] = one.start, one.end, offset, offset + one.size_bytes
        most = max(most, offset + one.size_bytes)
    return Layout(tuple(offsets.tolist()), most)


def _lowest(low: NDArray[np.int64], high: NDArray[np.int64], size_bytes: int) -> int:
    """The start of the smallest gap between occupied ranges, or where the last of them ends."""
    if not low.size:
        return 0
    by_start = np.argsort(low, kind="stable")
    starts = low[by_start]
    ends = np.maximum.accumulate(np.concatenate(([0], high[by_start])))
    gaps = starts - ends[:-1]
    fitting = np.flatnonzero(gaps >= size_bytes)
    return int(ends[fitting[np.argmin(gaps[fitting])]] if fitting.size else ends[-1])


__all__ = ["Interval", "Layout", "lay_out", "live_peak_bytes", "quick_size_bytes"]
