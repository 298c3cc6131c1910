"""The frontier: candidates that no other beats in memory, time and error at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from s2a_edge.pack.search.candidates import Candidate

MOST_ROWS = 24


@dataclass(frozen=True)
class Row:
    """A candidate and what it costs.

    Attributes:
        candidate: the configuration.
        total_bytes: what the whole process of training needs.
        step_ms: of one update, all of its micro-batches and the optimizer.
        gradient_error: relative, that codes of saved values cause.
        left_out: share of the squared norm of all gradients that does not train.
        drafted: compiled and planned; else estimated from others that were.
        least_bytes: what it may need in a better order of its nodes, at the very least.
    """

    candidate: Candidate
    total_bytes: int
    step_ms: float
    gradient_error: float
    left_out: float
    drafted: bool
    least_bytes: int = 0

    @property
    def error(self) -> float:
        """Of the gradients of all blocks: what codes change and what is left out."""
        return math.sqrt((1 - self.left_out) * self.gradient_error ** 2 + self.left_out)


def frontier(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other is at least as good as in memory, time and error, the smallest first.

    Of rows that are equal in all three the first stays.
    """
    kept: list[Row] = []
    for row in sorted(rows, key=_figures):
        # Sorted by memory first: only earlier rows can be at least as good.
        if not any(k.step_ms <= row.step_ms and k.error <= row.error for k in kept):
            kept.append(row)
    return kept


def _figures(row: Row) -> tuple[int, float, float]:
    return row.total_bytes, row.step_ms, row.error


def thinned(rows: Sequence[Row], kept: Row | None = None, most: int = MOST_ROWS) -> list[Row]:
    """At most ``most`` of ``rows``, ``kept`` among them: of equal shares of memory the fastest.

    Args:
        rows: in ascending order of memory.
        kept: a row to keep, added where it is missing.
        most: how many.
    """
    found = list(rows) if kept is None or kept in rows else sorted([*rows, kept], key=_figures)
    if len(found) <= most:
        return found
    shares = most - (kept is not None)
    low, high = math.log(found[0].total_bytes), math.log(found[-1].total_bytes)
    fastest: dict[int, Row] = {}
    for row in found:
        at = int(shares * (math.log(row.total_bytes) - low) / ((high - low) or 1.0))
        share = min(at, shares - 1)
        if share not in fastest or row.step_ms < fastest[share].step_ms:
            fastest[share] = row
    chosen = {id(row) for row in (*fastest.values(), kept)}
    return [row for row in found if id(row) in chosen or row == kept]


__all__ = ["MOST_ROWS", "Row", "frontier", "thinned"]
