"""Which candidate, and why.

In this order: first everything trains, from weights that are kept in at least 8 bits; then 4-bit
weights, which change what the network computes; then fewer blocks, which change what can be
learned. Within such a *tier* the fastest step wins among the candidates that fit the budget and
whose gradient error is within the limit. Steps that the time model cannot tell apart count as
equally fast; of these the one with the least error, then the least memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from s2a_edge.pack.search.candidates import Candidate
from s2a_edge.pack.search.frontier import Row
from s2a_edge.spec.units import format_bytes

# Predicted times this close are the same.
SAME_TIME = 0.01
# By how much an estimate of memory may be too high.
SLACK = 0.03


def choose(rows: Iterable[Row], budget_bytes: int, exact: Callable[[Candidate], Row],
           ordered: Callable[[Candidate], Row],
           allowed: Callable[[Row], bool] = lambda row: True) -> Row | None:
    """The row of the candidate to take, drafted; None if no candidate fits.

    Args:
        rows: estimated or drafted.
        budget_bytes: of the whole process of training.
        exact: drafts a candidate.
        ordered: drafts it with a better order of its nodes, which takes longer.
        allowed: whether a row's error is tolerated.
    """
    fitting: list[Row] = []
    best_ms = float("inf")
    for row in sorted(filter(allowed, rows), key=lambda row: row.step_ms):
        if row.step_ms > best_ms * (1 + SAME_TIME):
            break
        if row.least_bytes * (1 - SLACK) > budget_bytes or _no_better(row, fitting):
            continue
        drafted = row if row.drafted else exact(row.candidate)
        if drafted.least_bytes <= budget_bytes < drafted.total_bytes:
            drafted = ordered(row.candidate)
        if drafted.total_bytes <= budget_bytes:
            fitting.append(drafted)
            best_ms = min(best_ms, drafted.step_ms)
    close = [row for row in fitting if row.step_ms <= best_ms * (1 + SAME_TIME)]
    return min(close, key=lambda row: (row.gradient_error, row.total_bytes), default=None)


def _no_better(row: Row, fitting: Sequence[Row]) -> bool:
    """Whether a slower row could not win by its error or memory either; spares its draft."""
    return any(row.gradient_error > other.gradient_error
               or (row.gradient_error == other.gradient_error
                   and row.total_bytes * (1 - SLACK) >= other.total_bytes) for other in fitting)


def reasons(chosen: Row, rows: Sequence[Row], budget_bytes: int, most_error: float,
            ) -> tuple[str, ...]:
    """Why ``chosen`` and not one that differs in one respect, a sentence for each respect."""
    said = []
    for field in ("micro_batch", "saves", "frozen", "blocks"):
        others = [row for row in rows if row.candidate != chosen.candidate
                  and replace(row.candidate, **{field: getattr(chosen.candidate, field)})
                  == chosen.candidate]
        faster = min((row for row in others if row.step_ms < chosen.step_ms * (1 - SAME_TIME)),
                     key=lambda row: row.total_bytes, default=None)
        if field == "blocks" and others and chosen.left_out > 0:
            full = min(others, key=lambda row: row.left_out)
            said.append(f"{_named(chosen, field)}: {chosen.left_out:.1%} of the gradient's squared "
                        f"norm is left out; {_named(full, field)} does not fit")
        elif field == "blocks" and others:
            less = min(others, key=lambda row: row.left_out)
            said.append(f"{_named(chosen, field)}: with {_named(less, field)} "
                        f"{less.left_out - chosen.left_out:.0%} more of the gradient's squared "
                        "norm would be left out")
        elif faster is not None:
            said.append(f"{_named(chosen, field)}: {_named(faster, field)} would take "
                        f"{1 - faster.step_ms / chosen.step_ms:.1%} less time"
                        f"{_but(faster, chosen, budget_bytes, most_error)}")
        elif others:
            next_ = min(others, key=lambda row: row.step_ms)
            more = next_.step_ms / chosen.step_ms - 1
            said.append(f"{_named(chosen, field)}: {_named(next_, field)} would take "
                        f"{abs(more):.1%} {'more' if more >= 0 else 'less'} time and have "
                        f"{next_.gradient_error:.1%} gradient error instead of "
                        f"{chosen.gradient_error:.1%}")
    return tuple(said)


def _named(row: Row, field: str) -> str:
    candidate = row.candidate
    return {"micro_batch": f"micro-batch {candidate.micro_batch}",
            "saves": candidate.saves.name, "frozen": f"{candidate.frozen} weights",
            "blocks": f"--blocks {candidate.blocks}"}[field]


def _but(faster: Row, chosen: Row, budget_bytes: int, most_error: float) -> str:
    """What speaks against the faster one."""
    over = faster.total_bytes - budget_bytes
    if over > 0:
        return f", and need {format_bytes(over)} more than the budget"
    if faster.gradient_error > most_error:
        return f", and have a gradient error of {faster.gradient_error:.1%}, above {most_error:.1%}"
    if faster.candidate.frozen == "int4" != chosen.candidate.frozen:
        return ", and code the weights in 4 bits, which is done only where nothing else fits"
    return ", and was passed over: rehearsed, it did not fit"


__all__ = ["SAME_TIME", "SLACK", "choose", "reasons"]
