"""Targets as an array of an ``.npz``, in the form of the task.

=================  ===========  ==============================================================
loss               array        what it holds
=================  ===========  ==============================================================
``cross_entropy``  ``labels``   integers [N], class indices
``bce``            ``labels``   0/1 integers or booleans [N, C], or probabilities from 0 to 1
``mse``, ``l1``    ``targets``  numbers [N, C], or [N] where there is one output
``output``         none         the loss's targets are inputs
=================  ===========  ==============================================================
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.dtypes import Targets
from s2a_edge.run.data.npz_members import Member, read_array
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import Task
from s2a_edge.spec.units import MIB

_MAX_TARGETS_BYTES = 512 * MIB


def target_array(task: Task) -> str | None:
    """The name of the array of targets; None where the task has none."""
    if task.loss == "output":
        return None
    return "labels" if task.loss in ("cross_entropy", "bce") else "targets"


def read_targets(archive: zipfile.ZipFile, member: Member, task: Task, path: Path) -> Targets:
    """The targets of all samples.

    Raises:
        DataError: dtype, shape or a value does not suit the task; the first wrong row is named.
    """
    rows, count = member.shape[:1], task.classes
    one = task.loss == "cross_entropy"
    shapes = [rows] if one else [(*rows, count)]
    if count == 1 and task.loss in ("mse", "l1"):
        shapes.append(rows)
    kinds = "iu" if one else "iubf"
    if not rows or member.shape not in shapes or member.dtype.kind not in kinds:
        expected = "integers [samples]" if one else f"numbers [samples, {count}]"
        raise _unsuitable(path, member, task, expected, f"{member.dtype} {list(member.shape)}")
    if not rows[0] or member.size_bytes > _MAX_TARGETS_BYTES:
        expected = "samples that fit in memory"
        raise _unsuitable(path, member, task, expected, f"{rows[0]} samples")
    values = read_array(archive, member, path).reshape(shapes[0])
    _check_values(values, task, path, member)
    if one:
        return values.astype(np.int64)
    if task.loss == "bce" and values.dtype.kind != "f":
        return values.astype(np.uint8)
    return values.astype(np.float32)


def _check_values(values: Targets, task: Task, path: Path, member: Member) -> None:
    if task.loss == "cross_entropy":
        wrong = (values < 0) | (values >= task.classes)
        expected = f"labels of {task.classes} classes"
    elif task.loss == "bce":
        wrong, expected = ~((values >= 0) & (values <= 1)), "labels from 0 to 1"
    else:
        with np.errstate(over="ignore"):
            wrong, expected = ~np.isfinite(values.astype(np.float32)), "finite numbers"
    rows = np.flatnonzero(wrong if wrong.ndim == 1 else wrong.any(axis=1))
    if rows.size:
        first = int(rows[0])
        value = values[first] if values.ndim == 1 else values[first][wrong[first]][0]
        got = f"{value} in row {first}, {rows.size} such rows"
        raise _unsuitable(path, member, task, expected, got)


def _unsuitable(path: Path, member: Member, task: Task, expected: str, got: str) -> DataError:
    if task.loss == "cross_entropy":
        todo = f"save class indices, 0 to {task.classes - 1}, as an integer array [samples]"
    elif task.loss == "bce":
        todo = f"save 0 or 1 for each label as an array [samples, {task.classes}]"
    else:
        todo = f"save finite numbers as an array [samples, {task.classes}]"
    name = member.info.filename.removesuffix(".npy")
    return DataError(where=f"{printable(path)}: {name}", expected=expected, got=got, todo=todo)
