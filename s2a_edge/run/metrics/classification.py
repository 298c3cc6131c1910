"""One class of several: accuracy, and F1 over classes of unequal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2a_edge.run.metrics.evaluation import Array, Evaluation, Score, require_finite


@dataclass(frozen=True)
class ClassCount:
    """Of one class: how many samples, how many of them were given this class, F1.

    Attributes:
        label: its name.
        samples: how many are of this class.
        correct: how many of these were recognised.
        predicted: how many samples were taken for this class.
    """

    label: str
    samples: int
    correct: int
    predicted: int

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None for a class that did not occur at all."""
        total = self.samples + self.predicted
        return 2 * self.correct / total if total else None


@dataclass(frozen=True)
class ClassificationResult(Evaluation):
    """Of cross-entropy.

    Attributes:
        top1: share of samples whose largest logit is their class, 0..1.
        macro_f1: mean F1 of the classes that occur, 0..1.
        per_class: counts in the order of the bundle's classes.
    """

    top1: float
    macro_f1: float
    per_class: tuple[ClassCount, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """``top1`` and ``macro_f1``."""
        return {"top1": self.top1, "macro_f1": self.macro_f1}

    @property
    def score(self) -> Score:
        """Top-1."""
        return Score("top1", self.top1, higher_is_better=True)


class ClassificationTally:
    """Counts classes given and classes right.

    Args:
        names: of the classes.
        where: for errors, the data set.
    """

    def __init__(self, names: Sequence[str], where: str) -> None:
        self._names, self._where = tuple(names), where
        self._loss_sum = 0.0
        self._samples, self._predicted, self._correct = np.zeros((3, len(names)), np.int64)

    def add(self, outputs: Array, targets: Array) -> None:
        """Logits [k, C] of the classes [k]."""
        count = len(self._names)
        self._loss_sum += require_finite(_cross_entropy_sum(outputs, targets), self._where)
        given = outputs.argmax(axis=1)
        self._samples += np.bincount(targets, minlength=count)
        self._predicted += np.bincount(given, minlength=count)
        self._correct += np.bincount(targets[given == targets], minlength=count)

    def loss(self) -> float:
        """Mean cross-entropy so far."""
        return self._loss_sum / int(self._samples.sum())

    def score(self) -> Score:
        """Top-1 so far."""
        return Score("top1", float(self._correct.sum() / self._samples.sum()), True)

    def result(self) -> ClassificationResult:
        """Of all that was added."""
        counts = zip(self._samples, self._correct, self._predicted, strict=True)
        per_class = tuple(
            ClassCount(name, int(samples), int(correct), int(predicted))
            for name, (samples, correct, predicted) in zip(self._names, counts, strict=True)
        )
        f1 = [row.f1 for row in per_class if row.f1 is not None]
        n = int(self._samples.sum())
        return ClassificationResult(
            loss=self.loss(),
            n=n,
            top1=self.score().value,
            macro_f1=float(np.mean(f1)),
            per_class=per_class,
        )


def _cross_entropy_sum(logits: Array, labels: Array) -> float:
    """Sum over rows of ``log sum exp(z) - z[label]``, in float64."""
    z = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of an infinite logit: not finite, as it should be
        z -= z.max(axis=1, keepdims=True)
        losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]
        return float(losses.sum())
