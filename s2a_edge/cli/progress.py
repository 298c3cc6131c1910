"""Training progress on stderr: a bar on a terminal, one line for each epoch elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s2a_edge.cli.bar_view import BarView
from s2a_edge.cli.metrics import metric_label, metric_text
from s2a_edge.spec.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from s2a_edge.cli.output import Output
    from s2a_edge.run.report import Progress

_PHASES = {"rehearse": "rehearsing", "train": "training", "validate": "validating"}


class ProgressView(BarView):
    """Shows :class:`s2a_edge.run.report.Progress` values; a context manager.

    Args:
        output: says whether there is a terminal, and whether to be quiet.
    """

    def __init__(self, output: Output) -> None:
        super().__init__(output, _columns)
        self._shown: tuple[str, int] | None = None

    def update(self, now: Progress) -> None:
        """Show where the run stands."""
        if self._bar is None:
            self._log(now)
            return
        if self._shown != (now.phase, now.epoch):
            self._shown = (now.phase, now.epoch)
            self._begin_bar("", now.steps or None, figures="")
        assert self._task is not None
        self._bar.update(
            self._task, description=title(now), completed=now.step, figures=figures(now)
        )

    def _log(self, now: Progress) -> None:
        """One line when the rehearsal starts, one when an epoch was trained, one when validated."""
        key = (now.phase, now.epoch)
        done = now.step >= now.steps
        if self._shown != key and (now.phase == "rehearse" or done):
            self._shown = key
            self._output.note("  ".join(part for part in (title(now), figures(now)) if part))


def title(now: Progress) -> str:
    """What is going on: ``training 2/3``."""
    if now.phase == "rehearse":
        return _PHASES[now.phase]
    return f"{_PHASES[now.phase]} {now.epoch}/{now.epochs}"


def figures(now: Progress) -> str:
    """Loss, accuracy, speed, and memory against the budget; what is not known is left out.

    While validating, loss and figure are those of the validation, over the samples so far; while
    training, the last validation's follow those of the epoch.
    """
    memory = format_bytes(now.peak_bytes)
    if now.budget_bytes is not None:
        memory += f" of {format_bytes(now.budget_bytes)}"
    training = now.phase == "train"
    val = "last val" if training else "val"
    parts = [
        f"loss {now.loss:.4f}" if training and now.loss is not None else "",
        f"accuracy {now.accuracy:.1%}" if training and now.accuracy is not None else "",
        f"{val} loss {now.val_loss:.4f}" if now.val_loss is not None else "",
        f"{val} {_score(now)}" if _score(now) else "",
        f"{now.images_s:.1f} images/s" if now.images_s is not None else "",
        f"peak {memory}",
    ]
    return "  ".join(part for part in parts if part)


def _score(now: Progress) -> str:
    """``top-1 91.30%``; empty where it is not known yet, or is the loss itself."""
    if now.val_metric in (None, "loss") or now.val_score is None:
        return ""
    name = str(now.val_metric)
    return f"{metric_label(name)} {metric_text(name, now.val_score)}"


def _columns() -> tuple[ProgressColumn, ...]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
