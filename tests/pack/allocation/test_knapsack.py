"""The solver against trying everything, and its bound."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.pack.allocation.knapsack import Choice, solve

_CHOICES = st.builds(Choice, st.integers(0, 60), st.integers(0, 1000).map(lambda n: n / 7))
_GROUPS = st.lists(st.lists(_CHOICES, min_size=1, max_size=4), min_size=1, max_size=5)


def _brute_force(groups: list[list[Choice]], capacity: int) -> float | None:
    costs = [math.fsum(c.cost for c in picks) for picks in itertools.product(*groups)
             if sum(c.size for c in picks) <= capacity]
    return min(costs, default=None)


@settings(max_examples=300, deadline=None)
@given(_GROUPS, st.integers(0, 250), st.sampled_from([1 << 16, 37, 5]))
def test_no_selection_is_better(groups: list[list[Choice]], capacity: int, columns: int) -> None:
    best = _brute_force(groups, capacity)
    found = solve(groups, capacity, columns)
    if best is None:
        assert found is None
        return
    assert found is not None
    picked = [group[i] for group, i in zip(groups, found.chosen, strict=True)]
    assert found.size == sum(c.size for c in picked) <= capacity
    assert found.cost == pytest.approx(math.fsum(c.cost for c in picked))
    # Fewer columns than bytes: no longer the best, but never better than the bound allows.
    assert found.bound <= best * (1 + 1e-9) + 1e-12 and best <= found.cost * (1 + 1e-9) + 1e-12
    if columns == 1 << 16:
        assert found.cost == pytest.approx(best)
        assert found.bound == found.cost


@given(_GROUPS, st.integers(1, 20), st.integers(1, 10**9))
def test_sizes_may_have_any_unit(groups: list[list[Choice]], capacity: int, unit: int) -> None:
    scaled = [[Choice(c.size * unit, c.cost) for c in group] for group in groups]
    plain, large = solve(groups, capacity), solve(scaled, capacity * unit)
    assert (plain is None) == (large is None)
    assert plain is None or (large is not None and plain.chosen == large.chosen)


@given(_GROUPS, st.integers(0, 250))
def test_more_room_never_costs_more(groups: list[list[Choice]], capacity: int) -> None:
    tight, loose = solve(groups, capacity), solve(groups, capacity + 13)
    if tight is not None:
        assert loose is not None and loose.cost <= tight.cost * (1 + 1e-12)


def test_many_groups_with_odd_sizes_are_within_a_thousandth() -> None:
    # As a backbone's: a hundred values, halving the bits costs ten times the error.
    groups = [[Choice(100_003 * n * bits // 8, 10.0 ** (-bits / 2) * (1 + n % 7))
               for bits in (2, 3, 4, 8)] for n in range(1, 101)]
    smallest = sum(g[0].size for g in groups)
    found = solve(groups, int(1.7 * smallest))
    assert found is not None and found.cost <= 1.001 * found.bound


def test_the_first_of_equals_is_taken() -> None:
    found = solve([[Choice(1, 2.0), Choice(1, 2.0)], [Choice(0, 1.0), Choice(3, 1.0)]], 10)
    assert found is not None and found.chosen == (0, 0)
