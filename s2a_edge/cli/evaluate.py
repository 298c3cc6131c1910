"""``s2a-edge eval``: loss and figures of a run's checkpoint, or of a bundle as packed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.cli.budget_option import Budget, Device, ThisDevice, resolve_budget
from s2a_edge.cli.metrics import metric_label, metric_text
from s2a_edge.cli.output import Json, Output, Quiet, table
from s2a_edge.cli.run_options import DATA_HELP, Checkpoint, Engine, MovedBundle, Threads

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.run.metrics import (
        ClassificationResult,
        Evaluation,
        MultiLabelResult,
        RegressionResult,
    )


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a bundle as packed.")],
    data: Annotated[Path, typer.Option(help=DATA_HELP)],
    checkpoint: Checkpoint = None,
    bundle: MovedBundle = None,
    budget: Budget = None,
    device: Device = None,
    this_device: ThisDevice = False,
    threads: Threads = None,
    engine: Engine = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure loss and accuracy, or errors, on data with targets."""
    from s2a_edge.run.finished_run import evaluate_run

    output = Output(as_json=as_json, quiet=quiet)
    given = resolve_budget(budget=budget, device=device, this_device=this_device, provider="cpu")
    result = evaluate_run(
        run,
        data,
        checkpoint=checkpoint,
        bundle=bundle,
        budget_bytes=given.budget_bytes if given else None,
        threads=threads,
        engine=engine,
        on_engine=lambda chosen: output.note(f"engine {chosen.provider}: {chosen.reason}"),
    )
    output.show(headline(result), *_tables(result))
    output.result(result)


def headline(result: Evaluation) -> str:
    """The loss, the figures and the number of samples in one line."""
    figures = [f"{metric_label(n)} {metric_text(n, v)}" for n, v in result.metrics.items()]
    left_out = getattr(result, "left_out", 0)
    more = f", {left_out} left out that fill no batch" if left_out else ""
    return f"{', '.join([f'loss {result.loss:.4f}', *figures])} of {result.n} samples{more}"


def _tables(result: Evaluation) -> list[Table]:
    """What is known of each class, label or output."""
    from s2a_edge.run.metrics import ClassificationResult, MultiLabelResult, RegressionResult

    if isinstance(result, ClassificationResult):
        return [_classes(result)]
    if isinstance(result, MultiLabelResult):
        return [_labels(result)]
    return [_outputs(result)] if isinstance(result, RegressionResult) else []


def _classes(result: ClassificationResult) -> Table:
    figures = ("samples", "correct", "share", "F1")
    made = table("", ("class", *figures), right=figures)
    for row in result.per_class:
        share = f"{row.correct / row.samples:.2%}" if row.samples else ""
        f1 = metric_text("macro_f1", row.f1)
        made.add_row(row.label, str(row.samples), str(row.correct), share, f1)
    return made


def _labels(result: MultiLabelResult) -> Table:
    figures = ("samples", "precision", "recall", "F1", "average precision")
    made = table("", ("label", *figures), right=figures)
    for row in result.per_label:
        shares = (row.precision, row.recall, row.f1, row.average_precision)
        shown = [metric_text("accuracy", share) for share in shares]
        made.add_row(row.label, str(row.positives), *shown)
    return made


def _outputs(result: RegressionResult) -> Table:
    figures = ("MAE", "RMSE", "R²")
    made = table("", ("output", *figures), right=figures)
    for row in result.per_output:
        errors = [metric_text(name, getattr(row, name)) for name in ("mae", "rmse", "r2")]
        made.add_row(row.label, *errors)
    return made
