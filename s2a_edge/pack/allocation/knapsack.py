"""The multiple-choice knapsack: one choice from each group, least cost within a capacity.

Solved exactly by dynamic programming over sizes (Dudzinski & Walukiewicz, Exact Methods for the
Knapsack Problem and its Generalizations, 1987) where the sizes have few enough multiples of their
common divisor; else sizes are rounded up to a grid, so that the result fits, and the Lagrangian
dual (Everett, Generalized Lagrange Multiplier Method, 1963) bounds how far from the optimum it can
be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
# Columns of the table: memory is a byte or two for each group and column.
_MOST_COLUMNS = 1 << 16


@dataclass(frozen=True)
class Choice:
    """One way to treat a group: ``size`` (an integer, at least 0) for ``cost`` (at least 0)."""

    size: int
    cost: float


@dataclass(frozen=True)
class Solution:
    """What was chosen.

    Attributes:
        chosen: for each group the index of its choice.
        size: sum of the sizes.
        cost: sum of the costs.
        bound: no solution within the capacity costs less than this.
    """

    chosen: tuple[int, ...]
    size: int
    cost: float
    bound: float


def solve(groups: Sequence[Sequence[Choice]], capacity: int,
          columns: int = _MOST_COLUMNS) -> Solution | None:
    """The choices of least total cost whose sizes sum to at most ``capacity``.

    Among equal costs the first choice listed is taken, so that equal inputs give equal results.

    Args:
        groups: what there is to choose from; at least one choice each.
        capacity: the most that the sizes may sum to.
        columns: most columns of the table; fewer make the result less exact where sizes are odd.

    Returns:
        None if even the smallest choices do not fit.
    """
    least = [min(c.size for c in group) for group in groups]
    spare = capacity - sum(least)
    if spare < 0:
        return None
    sizes = [np.array([c.size for c in g]) - low for g, low in zip(groups, least, strict=True)]
    costs = [np.array([c.cost for c in group]) for group in groups]
    spare = min(spare, sum(int(s.max()) for s in sizes))
    divisor = math.gcd(*(int(v) for s in sizes for v in s)) or 1
    exact = spare // divisor < columns
    # Rounded up to a grid that leaves each of the groups at most a column short.
    unit = divisor if exact else -(-spare // (columns - 1))
    chosen = _table([-(-s // unit) for s in sizes], costs, spare // unit)
    bound = _total(costs, chosen)
    if not exact:
        dual, other = _dual(sizes, costs, spare)
        chosen = min(chosen, other, key=lambda picks: _total(costs, picks))
        bound = min(dual, _total(costs, chosen))
    size = sum(groups[i][c].size for i, c in enumerate(chosen))
    return Solution(tuple(chosen), size, _total(costs, chosen), bound)


def _table(sizes: list[NDArray[np.int64]], costs: list[Doubles], capacity: int) -> list[int]:
    """Dynamic programming over columns 0..capacity; every group has a choice of size 0."""
    best: Doubles = np.zeros(capacity + 1)
    picks: list[NDArray[np.uint16]] = []
    for size, cost in zip(sizes, costs, strict=True):
        new = np.full(capacity + 1, math.inf)
        pick = np.zeros(capacity + 1, np.uint16)
        for index, (s, c) in enumerate(zip(size.tolist(), cost.tolist(), strict=True)):
            if s > capacity:
                continue
            candidate = best[: capacity + 1 - s] + c
            better = candidate < new[s:]
            new[s:][better] = candidate[better]
            pick[s:][better] = index
        best = new
        picks.append(pick)
    at, chosen = capacity, []
    for size, pick in zip(reversed(sizes), reversed(picks), strict=True):
        index = int(pick[at])
        chosen.append(index)
        at -= int(size[index])
    return chosen[::-1]


def _dual(sizes: list[NDArray[np.int64]], costs: list[Doubles], capacity: int,
          ) -> tuple[float, list[int]]:
    """(the Lagrangian bound, feasible choices at the best price); size 0 is always a choice."""
    def at(price: float) -> tuple[float, int, list[int]]:
        chosen = [int(np.argmin(c + price * s)) for s, c in zip(sizes, costs, strict=True)]
        return _total(costs, chosen), sum(
            int(s[i]) for s, i in zip(sizes, chosen, strict=True)), chosen

    low, high = 0.0, 2 * max(float(c.max()) for c in costs) + 1e-300
    bound, feasible = 0.0, at(high)[2]
    for price in (low, high):
        cost, size, _ = at(price)
        bound = max(bound, cost + price * (size - capacity))
    for _ in range(100):
        price = (low + high) / 2
        cost, size, chosen = at(price)
        bound = max(bound, cost + price * (size - capacity))
        if size > capacity:
            low = price
        else:
            high, feasible = price, chosen
    return bound, feasible


def _total(costs: list[Doubles], chosen: list[int]) -> float:
    return math.fsum(float(c[i]) for c, i in zip(costs, chosen, strict=True))


__all__ = ["Choice", "Solution", "solve"]
