from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from s2a_edge.pack.plan.buffers import Buffer
from s2a_edge.pack.plan.liveness import alive_at, live_bytes, peak_node
from s2a_edge.spec.memory_plan import MemoryKind

NODES = 6


def buffer(size: int, start: int, end: int, kind: MemoryKind = MemoryKind.WORKING) -> Buffer:
    return Buffer(f"{size}@{start}", size, kind, start, end)


@st.composite
def lifetimes(draw: st.DrawFn) -> Buffer:
    start = draw(st.integers(0, NODES))
    return buffer(draw(st.integers(0, 1000)), start, draw(st.integers(start, NODES)),
                  draw(st.sampled_from(MemoryKind)))


def naive_live_bytes(buffers: list[Buffer], kind: MemoryKind) -> list[int]:
    """Looks at every buffer in every node."""
    return [sum(b.size_bytes for b in buffers if b.kind is kind and b.start <= node < b.end)
            for node in range(NODES)]


@given(st.lists(lifetimes(), max_size=12))
@example([buffer(7, 1, 3), buffer(7, 1, 3)])  # equal
@example([buffer(7, 0, 6), buffer(5, 2, 4)])  # nested
@example([buffer(7, 0, 3), buffer(5, 3, 6)])  # touching: never alive together
@example([buffer(7, 3, 3), buffer(0, 0, 6)])  # empty in time, empty in space
def test_live_bytes_equal_the_naive_twin(buffers: list[Buffer]) -> None:
    live = live_bytes(buffers, NODES)
    assert {k: array.tolist() for k, array in live.items()} == {
        kind: naive_live_bytes(buffers, kind) for kind in MemoryKind}


@given(st.lists(lifetimes(), max_size=12))
def test_the_peak_is_the_largest_sum_of_what_is_alive(buffers: list[Buffer]) -> None:
    live = live_bytes(buffers, NODES)
    totals = np.sum(list(live.values()), axis=0)
    alive = alive_at(buffers, peak_node(live))
    assert sum(b.size_bytes for b in alive) == totals.max()
    assert [b.size_bytes for b in alive] == sorted((b.size_bytes for b in alive), reverse=True)


def test_touching_lifetimes_do_not_add_up() -> None:
    live = live_bytes([buffer(7, 0, 3), buffer(5, 3, 6)], NODES)
    assert live[MemoryKind.WORKING].tolist() == [7, 7, 7, 5, 5, 5]


def test_no_nodes() -> None:
    live = live_bytes([], 0)
    assert live[MemoryKind.SAVED].size == 0
    assert peak_node(live) == 0
