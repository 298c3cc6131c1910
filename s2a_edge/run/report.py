"""What a run tells: progress while it runs, one record per step and epoch, a summary at the end.

Values only; the command line renders them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from s2a_edge.run.step_down import StepDown

Phase = Literal["rehearse", "train", "validate"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        phase: what is going on.
        epoch: from 1.
        epochs: how many there will be.
        step: steps done in this epoch (batches, when validating).
        steps: how many this epoch has.
        loss: mean over the epoch's training samples so far; None before the first.
        accuracy: share of them that was classified correctly, 0..1; None also for tasks without a
            right or wrong.
        lr: learning rate of the last step.
        images_s: samples per second since the epoch (or the resumed part of it) began.
        memory_bytes: resident now.
        peak_bytes: the most that was resident.
        budget_bytes: what may be resident; None: no budget was given.
        val_loss: while validating, mean over the samples so far; in training, of the last
            validation; None before the first.
        val_metric: name of the figure that decides which epoch is best.
        val_score: its value, of the same samples as ``val_loss``; None where it is known only when
            all of them are.
    """

    phase: Phase
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    accuracy: float | None
    lr: float | None
    images_s: float | None
    memory_bytes: int
    peak_bytes: int
    budget_bytes: int | None
    val_loss: float | None = None
    val_metric: str | None = None
    val_score: float | None = None


OnProgress = Callable[[Progress], None]


def rehearsing(
    epochs: int, memory_bytes: int, peak_bytes: int, budget_bytes: int | None
) -> Progress:
    """Progress of a run that has not begun: its rehearsal."""
    return Progress(
        phase="rehearse",
        epoch=1,
        epochs=epochs,
        step=0,
        steps=1,
        loss=None,
        accuracy=None,
        lr=None,
        images_s=None,
        memory_bytes=memory_bytes,
        peak_bytes=peak_bytes,
        budget_bytes=budget_bytes,
    )


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
        epoch: from 1.
        loss: mean training loss over its samples.
        accuracy: training accuracy, 0..1, each sample as it was when its step ran; None for tasks
            without a right or wrong.
        val_loss: after the epoch; None without validation data.
        val_metrics: figures after the epoch by name, such as ``top1``; those that are defined.
    """

    epoch: int
    loss: float
    accuracy: float | None
    val_loss: float | None
    val_metrics: dict[str, float]


@dataclass(frozen=True)
class RunSummary:
    """What ``fit`` did.

    Attributes:
        out: the run folder.
        epochs: finished epochs, those before a resume included.
        steps: optimizer steps, likewise.
        history: one record per finished epoch.
        best_epoch: whose parameters are in ``best.safetensors``; None without validation data.
        best_metric: name of the figure that chose it, ``loss`` or one of ``val_metrics``.
        micro_batch: rows per run of the training graph.
        budget_bytes: what the process was held to; None: nothing was given.
        arena_limit_bytes: hard limit of the runtime's arena.
        peak_bytes: the most that was resident while training.
        seconds: duration of this call.
        stopped_by: name of the signal that ended the run early; None: it ran to its end.
        out_of_patience: it ended early since no epoch was better for long enough.
        step_downs: changes to a smaller micro-batch, in order.
        skipped_steps: of ``steps``, those without an update, since gradients overflowed float16.
        loss_scale: the factor on gradients in the end; None where they are not scaled.
    """

    out: Path
    epochs: int
    steps: int
    history: tuple[EpochRecord, ...]
    best_epoch: int | None
    best_metric: str | None
    micro_batch: int
    budget_bytes: int | None
    arena_limit_bytes: int
    peak_bytes: int
    seconds: float
    stopped_by: str | None
    out_of_patience: bool
    step_downs: tuple[StepDown, ...] = ()
    skipped_steps: int = 0
    loss_scale: float | None = None
