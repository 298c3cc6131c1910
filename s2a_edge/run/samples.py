"""Checks of samples that a caller hands over in memory, for one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from s2a_edge.run.batch_inputs import BatchInputs
from s2a_edge.run.device_tensor import Array
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import Task


def check_inputs(inputs: Mapping[str, Array], bound: BatchInputs, effective_batch: int) -> int:
    """How many samples there are, after a look at names and shapes.

    Raises:
        DataError: an input is missing, unknown or of another shape, or there are too many samples.
    """
    samples = min((np.shape(v)[0] if np.ndim(v) else 0 for v in inputs.values()), default=0)
    expected = {name: (samples, *t.shape[1:]) for name, t in bound.tensors.items()}
    got = {name: np.shape(values) for name, values in inputs.items()}
    if expected != got:
        raise DataError(
            where="step inputs",
            expected=", ".join(f"{name} {list(shape)}" for name, shape in expected.items()),
            got=", ".join(f"{name} {list(shape)}" for name, shape in got.items()) or "nothing",
            todo="give every data input of the bundle, one row per target",
        )
    if not 1 <= samples <= effective_batch:
        raise DataError(
            where="step",
            expected=f"1 to {effective_batch} samples (the effective batch)",
            got=str(samples),
            todo="split the samples into several steps",
        )
    return samples


def check_targets(targets: Array, task: Task, samples: int) -> Array:
    """Targets in the form of the task; class indices become int64.

    Raises:
        DataError: their number, shape, type or range does not suit the task.
    """
    count = task.classes
    if task.loss == "cross_entropy" and targets.ndim == 1:
        _check_classes(targets, count, samples)
        return targets.astype(np.int64)
    expected = {
        "cross_entropy": f"class indices [{samples}], or soft labels [{samples}, {count}]",
        "bce": f"labels from 0 to 1 [{samples}, {count}]",
        "output": "no targets: the graph's own loss takes them as inputs",
    }.get(task.loss, f"finite numbers [{samples}, {count}]")
    right = targets.shape == (samples, count) and targets.dtype.kind in "fiub"
    if right and task.loss == "bce":
        right = bool(((targets >= 0) & (targets <= 1)).all())
    if not right or not np.isfinite(targets).all():
        raise _unsuitable(targets, expected)
    return targets


def full_batch_needed(effective_batch: int, got: int) -> DataError:
    """The error of a step that would not be full, for a loss that cannot leave samples out."""
    return DataError(
        where="step",
        expected=f"{effective_batch} samples: the graph's own loss takes full batches only",
        got=str(got),
        todo="give a whole effective batch",
    )


def _check_classes(labels: Array, classes: int, samples: int) -> None:
    integer = np.issubdtype(labels.dtype, np.integer)
    if len(labels) != samples or not integer or not 0 <= labels.min() <= labels.max() < classes:
        expected = f"class indices 0..{classes - 1} [{samples}], or soft labels"
        raise _unsuitable(labels, f"{expected} [{samples}, {classes}]")


def _unsuitable(targets: Array, expected: str) -> DataError:
    numbers = targets.dtype.kind in "fiu" and targets.size > 0
    return DataError(
        where="targets",
        expected=expected,
        got=f"{targets.dtype}{list(targets.shape)}"
        + (f" from {targets.min()} to {targets.max()}" if numbers else ""),
        todo="give targets of the bundle's task",
    )
