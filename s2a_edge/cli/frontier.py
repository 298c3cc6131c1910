"""The frontier of a search as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from s2a_edge.cli.output import table

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.spec.manifest import Manifest
    from s2a_edge.spec.manifest_search import SearchRecord


def search_parts(search: SearchRecord) -> list[str | Table]:
    """What a search weighed, what it took and why, for a person."""
    from s2a_edge.spec.units import format_bytes

    figures = ("memory", "update ms", "gradient error")
    made = table(
        f"Memory against step time against gradient error, within "
        f"{format_bytes(search.budget_bytes)}",
        ("", *figures, "micro-batch", "saved values", "weights", "blocks"),
        right=(*figures, "micro-batch"),
    )
    for at, row in enumerate(search.rows):
        fits = row.total_bytes <= search.budget_bytes
        made.add_row(
            "chosen" if at == search.chosen else "" if fits else "too large",
            format_bytes(row.total_bytes),
            f"{row.step_ms:.0f}",
            f"{row.gradient_error:.2%}",
            str(row.micro_batch),
            row.saves,
            row.frozen,
            row.blocks,
        )
    weighed = (
        f"{search.weighed} configurations weighed, {search.drafted} compiled and planned, "
        f"{search.seconds:.0f} s"
    )
    return [made, weighed, *(f"- {reason}" for reason in search.reasons)]


def draw_frontier(path: Path, manifest: Manifest) -> None:
    """Draw the frontier of a manifest's search.

    Raises:
        StorageError: the file cannot be written.
    """
    from s2a_edge.cli.frontier_png import write_png

    search = manifest.recipe.search
    assert search is not None
    name = Path(manifest.source.name).name
    title = f"{name}: an update of {manifest.recipe.effective_batch} samples"
    write_png(path, title, search)
