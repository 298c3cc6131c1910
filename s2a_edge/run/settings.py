"""Everything that decides what a run computes: with equal settings, data and bundle, equal bits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.schedule import WarmupCosine
from s2a_edge.run.target_scaling import Numbers, TargetScaling
from s2a_edge.spec.errors import UsageError

_MAX_SHOWN_CHARS = 80


@dataclass(frozen=True)
class FitSettings:
    """Settings of one run.

    Attributes:
        epochs: passes over the data.
        lr: peak learning rate.
        warmup_epochs: length of the linear warm-up; may be a fraction.
        label_smoothing: share of each target that is spread over all classes, 0..1; of several
            labels, the share of its way to 1/2 that each target moves.
        augment: random views of the samples.
        seed: of order and augmentation.
        optimizer: its hyperparameters.
        class_weights: one for each class, as they follow from the wish and the data; None: equal.
        target_scaling: mean and deviation of regressed numbers in the training data; None: numbers
            are learned as they are, or none are.
        patience: end after this many epochs without a better one; None: train to the end.

    Raises:
        UsageError: a number is out of its range.
    """

    epochs: int
    lr: float
    warmup_epochs: float
    label_smoothing: float
    augment: bool
    seed: int
    optimizer: Hyperparameters
    class_weights: Numbers | None = None
    target_scaling: TargetScaling | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(
                where="epochs", expected="1 or more", got=str(self.epochs), todo="give 1 or more"
            )
        if not (math.isfinite(self.warmup_epochs) and 0 <= self.warmup_epochs <= self.epochs):
            raise UsageError(
                where="warm-up",
                expected=f"0 to {self.epochs} epochs",
                got=str(self.warmup_epochs),
                todo="give fewer warm-up epochs",
            )
        if not 0 <= self.label_smoothing <= 1:
            raise UsageError(
                where="label smoothing",
                expected="a share from 0 to 1",
                got=str(self.label_smoothing),
                todo="use 0.1, or 0 to turn it off",
            )
        if self.patience is not None and self.patience < 1:
            raise UsageError(
                where="patience", expected="1 or more epochs", got=str(self.patience),
                todo="give 1 or more",
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(
                where="seed", expected="0 to 2**63 - 1", got=str(self.seed), todo="give another"
            )

    def schedule(self, steps_per_epoch: int) -> WarmupCosine:
        """Learning rate over all steps of the run."""
        warmup_steps = round(self.warmup_epochs * steps_per_epoch)
        return WarmupCosine(self.lr, self.epochs * steps_per_epoch, warmup_steps)


def differences(now: FitSettings, before: FitSettings) -> list[str]:
    """Settings that differ, ``lr 0.01 (was 0.001)``, in the order of the fields."""
    pairs = zip(_flat(now).items(), _flat(before).values(), strict=True)
    return [f"{name} {_shown(new)} (was {_shown(old)})" for (name, new), old in pairs if new != old]


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"


def _flat(settings: FitSettings) -> dict[str, object]:
    fields = dataclasses.asdict(settings)
    return {**fields.pop("optimizer"), **fields}
