"""``s2a-edge train``: fine-tune a bundle on a folder of data, inside the budget."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.cli.budget_option import Budget, Device, ThisDevice, resolve_budget
from s2a_edge.cli.metrics import metric_label, metric_text
from s2a_edge.cli.output import Json, Output, Quiet, table
from s2a_edge.cli.progress import ProgressView
from s2a_edge.cli.run_options import DATA_HELP, Engine, Kernels, Threads
from s2a_edge.cli.train_again import train_again
from s2a_edge.cli.trust_option import Trust, load_trust
from s2a_edge.spec.errors import BudgetError

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.run.report import RunSummary
    from s2a_edge.run.step_down import StepDown


def train(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder or a .s2a file.")],
    data: Annotated[Path, typer.Option(help=DATA_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder: checkpoints and records.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 3,
    val: Annotated[
        Path | None, typer.Option(help="Validation data, evaluated after every epoch.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.0,
    warmup: Annotated[
        float, typer.Option(help="Epochs of linear warm-up before the cosine.")
    ] = 0.0,
    label_smoothing: Annotated[float, typer.Option(help="Share given to other classes.")] = 0.0,
    class_weights: Annotated[
        str | None,
        typer.Option(help="balanced, one number for each class (1,2.5,1), or a file of them."),
    ] = None,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize/--no-standardize",
            help="Learn regressed numbers relative to mean and deviation of the training data.",
        ),
    ] = True,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many epochs without a better one.")
    ] = None,
    max_norm: Annotated[
        float | None, typer.Option(help="Clip the gradient's global norm; default: no clipping.")
    ] = None,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    augment: Annotated[
        bool, typer.Option("--augment/--no-augment", help="Random flips and crops of images.")
    ] = True,
    budget: Budget = None,
    device: Device = None,
    this_device: ThisDevice = False,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Samples a step takes at once; default: the most that fit.", min=1),
    ] = None,
    step_down: Annotated[
        bool,
        typer.Option(
            "--step-down/--no-step-down",
            help="Where memory gets short, go on with a smaller micro-batch; else stop, saved.",
        ),
    ] = True,
    headroom: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of the machine, and of the control group, that must stay free; default: "
            "2 %, within 8 and 256 MiB; 0: no watch.",
        ),
    ] = None,
    threads: Threads = None,
    engine: Engine = "auto",
    kernels: Kernels = "auto",
    start_from: Annotated[
        Path | None,
        typer.Option(help="Begin with the tuned values of this run; equal trainables are needed."),
    ] = None,
    trust: Trust = None,
    seed: Annotated[int, typer.Option(help="Seed of order and augmentation.", min=0)] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a bundle inside a memory budget."""
    from s2a_edge.run.class_weights import read_class_weights
    from s2a_edge.run.engine_choice import choose_engine
    from s2a_edge.run.trainer import Trainer
    from s2a_edge.spec.bundle import Bundle
    from s2a_edge.spec.units import parse_bytes

    output = Output(as_json=as_json, quiet=quiet)
    headroom_bytes = None if headroom is None else parse_bytes(headroom, where="--headroom")
    given = resolve_budget(budget=budget, device=device, this_device=this_device, provider="cpu")
    trainer: Trainer | None = None
    try:
        with (
            Bundle.open(bundle, trust=load_trust(trust)) as opened,
            ProgressView(output) as progress,
        ):
            chosen = choose_engine(
                engine,
                opened.manifest,
                given.budget_bytes if given else None,
                micro_batch,
                evaluation=val is not None,
            )
            if chosen.is_news:
                output.note(f"engine {chosen.provider}: {chosen.reason}")
            trainer = Trainer(
                opened,
                budget_bytes=given.budget_bytes if given else None,
                micro_batch=micro_batch,
                threads=threads,
                provider=chosen.provider,
                cuda_context_bytes=chosen.cuda_context_bytes,
                seed=seed,
                kernels=kernels,
                headroom_bytes=headroom_bytes,
                evaluation=val is not None,
            )
            if start_from is not None:
                trainer.start_from(start_from)
            summary = trainer.fit(
                data,
                val=val,
                epochs=epochs,
                lr=lr,
                weight_decay=weight_decay,
                warmup_epochs=warmup,
                label_smoothing=label_smoothing,
                class_weights=read_class_weights(class_weights, opened.manifest.task)
                if class_weights is not None
                else None,
                standardize=standardize,
                patience=patience,
                max_norm=max_norm,
                momentum=momentum,
                augment=augment,
                out=out,
                resume=resume,
                on_progress=progress.update,
                step_down=step_down,
                on_step_down=lambda change: output.note(_step_down_line(change)),
            )
    except BudgetError:
        change = None if trainer is None else trainer.continues_with
        if change is None:
            raise
        output.note(_step_down_line(change))
        train_again(change.micro_batch)
    output.show(_history_table(summary), *_closing_lines(summary))
    output.result({**dataclasses.asdict(summary), "engine": chosen})
    if summary.stopped_by is not None:
        # As a shell reports a program that a signal ended.
        raise typer.Exit(128 + signal.Signals[summary.stopped_by].value)


def _step_down_line(change: StepDown) -> str:
    return (
        f"memory got short ({change.reason}): after step {change.global_step} on with micro-batch "
        f"{change.micro_batch} instead of {change.before}"
    )


def _history_table(summary: RunSummary) -> Table:
    """One row an epoch; figures that no epoch has get no column."""
    history = summary.history
    names = list(dict.fromkeys(name for record in history for name in record.val_metrics))
    scored = any(record.accuracy is not None for record in history)
    validated = any(record.val_loss is not None for record in history)
    columns = ["epoch", "loss", *(["accuracy"] if scored else [])]
    columns += ["val loss"] if validated else []
    columns += [f"val {metric_label(name)}" for name in names]
    made = table("", (*columns, ""), right=columns)
    for record in history:
        cells = [str(record.epoch), f"{record.loss:.4f}"]
        cells += ["" if record.accuracy is None else f"{record.accuracy:.2%}"] if scored else []
        cells += ["" if record.val_loss is None else f"{record.val_loss:.4f}"] if validated else []
        cells += [metric_text(name, record.val_metrics.get(name)) for name in names]
        mark = f"best {metric_label(summary.best_metric or '')}"
        made.add_row(*cells, mark if record.epoch == summary.best_epoch else "")
    return made


def _closing_lines(summary: RunSummary) -> list[str]:
    from s2a_edge.spec.units import format_bytes

    peak = f"memory peak {format_bytes(summary.peak_bytes)}"
    if summary.budget_bytes is not None:
        peak += f" of {format_bytes(summary.budget_bytes)}"
    lines = [
        f"{summary.out}: {summary.epochs} epochs, {summary.steps} steps of micro-batch "
        f"{summary.micro_batch} in {summary.seconds:.1f} s; {peak}"
    ]
    if summary.loss_scale is not None:
        lines.append(
            f"float16: {summary.skipped_steps} steps skipped since gradients overflowed; their "
            f"scale is {summary.loss_scale:g}"
        )
    if summary.out_of_patience:
        lines.append("stopped since no epoch was better for as long as --patience says")
    if summary.stopped_by is not None:
        lines.append(f"stopped by {summary.stopped_by}; continue with --resume")
    return lines
