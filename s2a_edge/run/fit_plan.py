"""What a run works on, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from s2a_edge.run.checkpoint import Best, EpochSums
from s2a_edge.run.data import DataSet, steps_per_epoch
from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.report import EpochRecord, OnProgress
from s2a_edge.run.settings import FitSettings
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.manifest import Manifest, Task
from s2a_edge.spec.task_ports import REGRESSION_LOSSES


@dataclass(frozen=True)
class FitPlan:
    """What a run works on.

    Attributes:
        data: training samples.
        val: validation samples, if any.
        settings: of the run.
        bundle_hash: of the bundle's ``SHA256SUMS``.
        loss: how targets become what the training graph takes.
        checkpoint_every_steps: optimizer steps between checkpoints; None: by time.
        on_progress: told after every micro-batch.
    """

    data: DataSet
    val: DataSet | None
    settings: FitSettings
    bundle_hash: str
    loss: LossInputs
    checkpoint_every_steps: int | None
    on_progress: OnProgress | None

    @property
    def full_batches(self) -> bool:
        """A graph's own loss cannot leave samples out, so no optimizer step may be ragged."""
        return self.loss.task.loss == "output"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""
        batch = self.loss.effective_batch
        return steps_per_epoch(len(self.data), batch, drop_last=self.full_batches)


@dataclass
class Position:
    """Where a run stands; what a checkpoint records besides the tensors."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    sums: EpochSums = field(default_factory=EpochSums)
    history: tuple[EpochRecord, ...] = ()
    best: Best | None = None


def loss_inputs_of(manifest: Manifest, settings: FitSettings) -> LossInputs:
    """How a run's targets enter the loss."""
    weights = settings.class_weights
    return LossInputs(
        manifest.task,
        manifest.recipe.effective_batch,
        settings.label_smoothing,
        None if weights is None else np.array(weights, np.float32),
        settings.target_scaling,
    )


def data_scaling(task: Task, data: DataSet) -> TargetScaling | None:
    """Mean and deviation of the numbers to be learned; None for tasks without numbers."""
    return TargetScaling.of(data.targets) if task.loss in REGRESSION_LOSSES else None


def scaling_of(task: Task, settings: FitSettings) -> TargetScaling | None:
    """What the parameters of a run follow; None for tasks without numbers."""
    if task.loss not in REGRESSION_LOSSES:
        return None
    return settings.target_scaling or TargetScaling.identity(task.classes)
