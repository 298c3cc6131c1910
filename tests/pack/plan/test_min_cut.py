from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.plan.min_cut import FlowNetwork

COUNT = 5
EDGES = st.lists(
    st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.integers(0, 20)),
    max_size=14)


def naive_min_cut(edges: list[tuple[int, int, int]]) -> int:
    """Tries every set of vertices on the side of vertex 0, with vertex 1 on the other."""
    sides = product([True, False], repeat=COUNT - 2)
    return min(sum(c for a, b, c in edges if side[a] and not side[b])
               for side in ((True, False, *rest) for rest in sides))


@given(EDGES)
def test_the_flow_equals_the_least_cut(edges: list[tuple[int, int, int]]) -> None:
    network = FlowNetwork(COUNT)
    for edge in edges:
        network.connect(*edge)
    assert network.min_cut(0, 1) == naive_min_cut(edges)


def test_nothing_connects() -> None:
    assert FlowNetwork(2).min_cut(0, 1) == 0
