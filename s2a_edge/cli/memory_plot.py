"""``--plot``: memory over a training step, as a picture or as a page to look around in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s2a_edge.spec.errors import BundleError, UsageError

if TYPE_CHECKING:
    from s2a_edge.spec.bundle import Bundle
    from s2a_edge.spec.requirement import Requirement

_SUFFIXES = (".png", ".html")


def require_plot_name(path: Path, suffixes: Sequence[str] = _SUFFIXES) -> None:
    """Raise UsageError unless a drawing of this name can be made."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            where=f"--plot {path}",
            expected=f"a name that ends in {' or '.join(suffixes)}",
            got=path.suffix or "no ending",
            todo="choose the kind of file by its name",
        )


def draw_memory(
    bundle: Bundle, needed: Requirement, path: Path, budget_bytes: int | None
) -> None:
    """Draw the training step of a requirement's micro-batch.

    Raises:
        BundleError: the bundle was packed without timelines, or one is damaged.
        StorageError: the file cannot be written.
    """
    from s2a_edge.cli.memory_layers import layers
    from s2a_edge.spec.timeline import read_timeline

    train = bundle.manifest.graphs.train
    graph = next(g for g in train if g.batch == needed.micro_batch)
    if graph.timeline is None:
        raise BundleError(
            where=graph.file,
            expected="a timeline of its buffers",
            got="a bundle without",
            todo="pack it again with this version",
        )
    timeline = read_timeline(bundle.file(graph.timeline))
    shown = layers(timeline, needed)
    name = Path(bundle.manifest.source.name).name
    title = f"{name}: one training step, micro-batch {needed.micro_batch}"
    if path.suffix.lower() == ".png":
        from s2a_edge.cli.memory_png import write_png

        write_png(path, title, shown, timeline.nodes, budget_bytes)
    else:
        from s2a_edge.cli.memory_html import write_html

        write_html(path, title, shown, timeline, budget_bytes)
