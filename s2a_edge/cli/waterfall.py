"""A requirement as a waterfall: a bar for each part, beginning where the one before ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s2a_edge.cli.output import table
from s2a_edge.spec.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.spec.waterfall import Bar, PhaseNeed

_WIDTH = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def waterfall_table(
    title: str, bars: Sequence[Bar], *, budget_bytes: int | None, drawn: bool
) -> Table:
    """The bars of a requirement.

    Args:
        title: above the table.
        bars: from :func:`s2a_edge.spec.waterfall.waterfall`.
        budget_bytes: where a line is drawn; None: nowhere.
        drawn: False: sizes in words only, for files and pipes.
    """
    columns = ("part", "needs", *(("",) if drawn else ()), "how")
    made = table(title, columns, right=("needs",))
    total_bytes = bars[-1].end_bytes if bars else 0
    scale_bytes = max(total_bytes, budget_bytes or 0, 1)
    for bar in bars:
        cells = [bar.label, format_bytes(bar.size_bytes)]
        if drawn:  # in 80 columns
            cells.append(drawn_bar(bar.start_bytes, bar.size_bytes, scale_bytes))
        made.add_row(*cells, bar.how.split()[0] if drawn else bar.how)
    made.add_section()
    totals = [("all together", total_bytes), ("budget", budget_bytes)]
    for label, size_bytes in totals:
        if size_bytes is not None:
            picture = [drawn_bar(0, size_bytes, scale_bytes)] if drawn else []
            made.add_row(label, format_bytes(size_bytes), *picture, "")
    return made


def drawn_bar(start_bytes: int, size_bytes: int, scale_bytes: int) -> str:
    """A bar of block characters; at least an eighth of a column where there is anything."""
    start = round(8 * _WIDTH * start_bytes / scale_bytes)
    end = round(8 * _WIDTH * (start_bytes + size_bytes) / scale_bytes)
    if size_bytes and end == start:
        end = start + 1
    columns = " " * (start // 8)
    # Blocks of eighths fill from the left, so a bar begins at a whole column.
    whole, eighths = divmod(end - 8 * (start // 8), 8)
    return columns + "█" * whole + _EIGHTHS[eighths]


def phases_table(phases: Sequence[PhaseNeed]) -> Table:
    """What each phase of a run needs in all."""
    made = table("", ("phase", "needs in all", "how"), right=("needs in all",))
    for phase in phases:
        made.add_row(phase.phase, format_bytes(phase.total_bytes), phase.how)
    return made
