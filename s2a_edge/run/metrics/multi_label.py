"""Any number of labels at once: average precision over all thresholds, F1 at one half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2a_edge.run.metrics.evaluation import Array, Evaluation, Score, require_finite

SCORE_BYTES = 4  # one float32 logit is kept of every sample and label: ranking needs them all


@dataclass(frozen=True)
class LabelFigures:
    """Of one label, on at a probability of 1/2.

    Attributes:
        label: its name.
        positives: samples that have it.
        precision: share of the samples that were given it and have it; None if none was.
        recall: share of the samples that have it and were given it; None if none has.
        f1: their harmonic mean; None where the label neither occurs nor is given.
        average_precision: precision averaged over the ranks of the positives; None if none has it.
    """

    label: str
    positives: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None


@dataclass(frozen=True)
class MultiLabelResult(Evaluation):
    """Of binary cross-entropy.

    Attributes:
        mean_ap: mean average precision of the labels that occur, 0..1; None if none does.
        macro_f1: mean F1 of the labels that occur or are given; None if none is.
        accuracy: share of all decisions that are right, 0..1.
        per_label: figures in the order of the bundle's labels.
    """

    mean_ap: float | None
    macro_f1: float | None
    accuracy: float
    per_label: tuple[LabelFigures, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """``mean_ap``, ``macro_f1`` where defined, ``accuracy``."""
        found = {"mean_ap": self.mean_ap, "macro_f1": self.macro_f1, "accuracy": self.accuracy}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def score(self) -> Score:
        """Mean average precision; the loss where no sample has any label."""
        if self.mean_ap is None:
            return super().score
        return Score("mean_ap", self.mean_ap, higher_is_better=True)


class MultiLabelTally:
    """Keeps all logits, since average precision ranks them.

    Args:
        names: of the labels.
        samples: how many there will be.
        where: for errors, the data set.
    """

    def __init__(self, names: Sequence[str], samples: int, where: str) -> None:
        self._names, self._where = tuple(names), where
        self._logits = np.empty((samples, len(names)), np.float32)
        self._on = np.empty((samples, len(names)), np.bool_)
        self._done = 0
        self._loss_sum = 0.0

    def add(self, outputs: Array, targets: Array) -> None:
        """Logits [k, C] of targets [k, C], each 0 to 1; at least 1/2 counts as on."""
        self._loss_sum += require_finite(_binary_cross_entropy_sum(outputs, targets), self._where)
        rows = slice(self._done, self._done + len(outputs))
        self._logits[rows], self._on[rows] = outputs, targets >= 0.5
        self._done += len(outputs)

    def loss(self) -> float:
        """Mean over samples and labels so far."""
        return self._loss_sum / (self._done * len(self._names))

    def score(self) -> None:
        """Nothing until all samples are ranked."""

    def result(self) -> MultiLabelResult:
        """Of all that was added."""
        logits, on = self._logits[: self._done], self._on[: self._done]
        rows = tuple(_figures(name, logits[:, i], on[:, i]) for i, name in enumerate(self._names))
        return MultiLabelResult(
            loss=self.loss(),
            n=self._done,
            mean_ap=_mean([row.average_precision for row in rows]),
            macro_f1=_mean([row.f1 for row in rows]),
            accuracy=float(np.mean((logits > 0) == on)),
            per_label=rows,
        )


def average_precision(logits: npt.NDArray[np.float32], on: npt.NDArray[np.bool_]) -> float | None:
    """``Σ_k (R_k - R_{k-1}) P_k`` over the distinct scores, the highest first; None if none is on.

    Precision and recall at a threshold count all samples at or above it, so that the order of
    equal scores does not matter; nothing is interpolated.
    """
    positives = int(on.sum())
    if not positives:
        return None
    order = np.argsort(-logits, kind="stable")
    ranked, hits = logits[order], np.cumsum(on[order])
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / positives
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _figures(
    name: str, logits: npt.NDArray[np.float32], on: npt.NDArray[np.bool_]
) -> LabelFigures:
    given = logits > 0
    positives, chosen, right = int(on.sum()), int(given.sum()), int((on & given).sum())
    return LabelFigures(
        label=name,
        positives=positives,
        precision=right / chosen if chosen else None,
        recall=right / positives if positives else None,
        f1=2 * right / (positives + chosen) if positives + chosen else None,
        average_precision=average_precision(logits, on),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _binary_cross_entropy_sum(logits: Array, targets: Array) -> float:
    """Sum of ``max(z, 0) - z t + log(1 + exp(-|z|))``, in float64."""
    z = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of an infinite logit: not finite, as it should be
        return float((np.maximum(z, 0) - z * targets + np.log1p(np.exp(-np.abs(z)))).sum())
