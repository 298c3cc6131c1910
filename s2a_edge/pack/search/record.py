"""What the manifest says of a search."""

from __future__ import annotations

import time

from s2a_edge.pack.search.choose import reasons
from s2a_edge.pack.search.frontier import Row, frontier, thinned
from s2a_edge.pack.search.search import Choice, Search
from s2a_edge.spec.manifest_search import FrontierRow, SearchRecord, TimedStep
from s2a_edge.spec.units import format_bytes

_ORDER = ("of what fits within the limit of the gradient error the fastest step was taken; 4-bit "
          "weights and fewer blocks only where nothing else fits")


def search_record(search: Search, choice: Choice, budget_bytes: int) -> SearchRecord:
    """The record of a choice."""
    options, row = search.options, choice.row
    shown = thinned(frontier(choice.rows), row)
    why = (f"{row.candidate.flags} is predicted to need {format_bytes(row.total_bytes)} of "
           f"{format_bytes(budget_bytes)} and {row.step_ms:.0f} ms for an update of "
           f"{search.base.effective_batch} samples", _ORDER,
           *reasons(row, choice.rows, budget_bytes, options.max_gradient_error))
    return SearchRecord(
        budget_bytes, options.max_gradient_error, tuple(sorted(options.fixed)),
        options.times_from, _calibrated(search), len(choice.rows), search.drafts.made,
        time.monotonic() - search.started_s, tuple(map(_shown, shown)), shown.index(row), why)


def _calibrated(search: Search) -> tuple[TimedStep, ...]:
    costs = search.costs
    return tuple(TimedStep(run.name, costs.ms(run.work), run.ms)
                 for run in search.calibration.runs if run.nodes)


def _shown(row: Row) -> FrontierRow:
    candidate = row.candidate
    return FrontierRow(candidate.micro_batch, candidate.saves.name, candidate.frozen,
                       candidate.blocks, candidate.flags, row.total_bytes, row.step_ms,
                       min(row.gradient_error, 1e30), min(1.0, row.left_out), row.drafted)


__all__ = ["search_record"]
