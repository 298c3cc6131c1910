"""Figures of an evaluation, by task: what is counted, what is reported, what decides."""

from __future__ import annotations

import numpy as np

from s2a_edge.run.metrics.classification import (
    ClassCount,
    ClassificationResult,
    ClassificationTally,
)
from s2a_edge.run.metrics.evaluation import Array, Evaluation, Score, Tally
from s2a_edge.run.metrics.mean_loss import LossResult, LossTally
from s2a_edge.run.metrics.multi_label import (
    SCORE_BYTES,
    LabelFigures,
    MultiLabelResult,
    MultiLabelTally,
)
from s2a_edge.run.metrics.regression import OutputFigures, RegressionResult, RegressionTally
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.manifest import Task


def tally_for(task: Task, samples: int, scaling: TargetScaling | None, where: str) -> Tally:
    """An empty tally for a task.

    Args:
        task: of the bundle.
        samples: how many the data set has.
        scaling: of regressed numbers; None: as they are.
        where: for errors, the data set.
    """
    names = task.labels or tuple(str(number) for number in range(task.classes))
    if task.loss == "cross_entropy":
        return ClassificationTally(names, where)
    if task.loss == "bce":
        return MultiLabelTally(names, samples, where)
    if task.loss == "output":
        return LossTally(samples, where)
    scaling = scaling or TargetScaling.identity(task.classes)
    return RegressionTally(names, scaling, absolute=task.loss == "l1", where=where)


def evaluation_bytes(task: Task, samples: int) -> int:
    """Bytes that the tally of ``samples`` samples holds; the counts of others are a few hundred."""
    if task.loss != "bce":
        return 0
    ranking = 3 * np.dtype(np.int64).itemsize  # order, ranked, hits: one label at a time
    return samples * (task.classes * (SCORE_BYTES + 1) + ranking)


SCORED_LOSSES = ("cross_entropy", "bce")
"""Tasks whose samples are right or wrong, so that training has an accuracy."""


def correct(task: Task, outputs: Array, targets: Array) -> float | None:
    """Samples that were recognised, for training's accuracy; None for tasks that have none.

    Of several labels a sample counts by the share of decisions that are right.
    """
    if task.loss == "cross_entropy":
        labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
        return float(np.sum(outputs.argmax(axis=1) == labels))
    if task.loss == "bce":
        return float(np.mean((outputs > 0) == (targets >= 0.5), axis=1).sum())
    return None


__all__ = [
    "SCORED_LOSSES",
    "ClassCount",
    "ClassificationResult",
    "Evaluation",
    "LabelFigures",
    "LossResult",
    "MultiLabelResult",
    "OutputFigures",
    "RegressionResult",
    "Score",
    "Tally",
    "correct",
    "evaluation_bytes",
    "tally_for",
]
