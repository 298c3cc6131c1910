"""Bits for an arena: the largest allocation whose plan fits."""

from __future__ import annotations

from dataclasses import replace

from s2a_edge.pack.allocation.allocate import Allocation
from s2a_edge.pack.compile import Allocated, Compiled
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.training_steps import training_steps, usable_threads

# A plan for the largest micro-batch takes a second or two; the arena follows the saved bytes
# nearly one to one, so few are needed.
_MOST_PLANS = 8
_CLOSE = 0.01


def with_arena(compiled: Compiled, arena_bytes: int, options: PackOptions) -> Compiled | None:
    """``compiled`` with other bits, its largest step planned to need at most ``arena_bytes``.

    Args:
        compiled: with bits that were allocated.
        arena_bytes: the arena that there is.
        options: of the pack.

    Returns:
        None if no allocation is small enough, or the same bits come out.
    """
    assert compiled.allocated is not None
    allocator = compiled.allocated.measured.allocator
    before = compiled.allocated.allocation
    low, high = allocator.smallest_bytes, allocator.largest_bytes
    capacity = before.stored_bytes + arena_bytes - _arena_bytes(compiled, before, options)
    best: Allocation | None = None
    for _ in range(_MOST_PLANS):
        tried = allocator.within(min(max(capacity, low), high))
        assert tried is not None
        planned = _arena_bytes(compiled, tried, options)
        if planned <= arena_bytes:
            best = tried
            low = tried.capacity_bytes
            if arena_bytes - planned <= _CLOSE * arena_bytes or low >= high:
                break
        else:
            high = tried.capacity_bytes
            if tried.stored_bytes <= allocator.smallest_bytes:
                break
        if high - low <= _CLOSE * high:
            break
        aim = tried.stored_bytes + arena_bytes - planned
        capacity = aim if low < aim < high else (low + high) // 2
    if best is None or best.bits == before.bits:
        return None
    steps = training_steps(compiled.by_batch, best, compiled.coder, options)
    return replace(compiled, steps=steps,
                   allocated=Allocated(compiled.allocated.measured, best))


def _arena_bytes(compiled: Compiled, allocation: Allocation, options: PackOptions) -> int:
    """What the plan of the largest micro-batch needs with ``allocation``."""
    largest = max(compiled.by_batch)
    steps = training_steps({largest: compiled.by_batch[largest]}, allocation,
                           compiled.coder, options)
    return plan_memory(steps[largest].model, threads=usable_threads(options)).plan.arena_bytes
