"""``s2a-edge eval``: loss and accuracy of a run's checkpoint, or of a bundle as packed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.cli.budget_option import Budget, Device, ThisDevice, resolve_budget
from s2a_edge.cli.output import Json, Output, Quiet, table
from s2a_edge.cli.run_options import Checkpoint, MovedBundle, Provider, Threads

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.run.evaluate import Evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a bundle as packed.")],
    data: Annotated[Path, typer.Option(help="Class folders of images, or a .npz file.")],
    checkpoint: Checkpoint = None,
    bundle: MovedBundle = None,
    budget: Budget = None,
    device: Device = None,
    this_device: ThisDevice = False,
    threads: Threads = None,
    provider: Provider = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure loss and accuracy on labelled data."""
    from s2a_edge.run.finished_run import evaluate_run

    output = Output(as_json=as_json, quiet=quiet)
    given = resolve_budget(budget=budget, device=device, this_device=this_device, provider=provider)
    result = evaluate_run(
        run,
        data,
        checkpoint=checkpoint,
        bundle=bundle,
        budget_bytes=given.budget_bytes if given else None,
        threads=threads,
        provider=provider,
    )
    output.show(_table(result))
    output.result(result)


def _table(result: Evaluation) -> Table:
    made = table(
        f"loss {result.loss:.4f}, top-1 {result.top1:.2%} of {result.n} samples",
        ("class", "samples", "correct", "share"),
        right=("samples", "correct", "share"),
    )
    for row in result.per_class:
        share = f"{row.correct / row.samples:.2%}" if row.samples else ""
        made.add_row(row.label, str(row.samples), str(row.correct), share)
    return made
