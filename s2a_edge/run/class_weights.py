"""How much each class counts in the loss: given, or by how often it occurs."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.manifest import Task

ClassWeights = Literal["balanced"] | Sequence[float]

BALANCED: Literal["balanced"] = "balanced"
_WHERE = "--class-weights"
_MAX_FILE_BYTES = 2**24


def resolve_class_weights(
    wanted: ClassWeights | str | None, task: Task, targets: npt.NDArray[Any]
) -> tuple[float, ...] | None:
    """One number for each class, as :class:`s2a_edge.run.loss_inputs.LossInputs` takes them.

    ``"balanced"`` is, of one class of several, ``N / (K n_c)`` with K the classes that occur and
    n_c the samples of class c, so that the mean weight of a sample is 1; a class that does not
    occur gets 1. Of several labels at once it is ``(N - n_c) / n_c``, so that a label's positives
    weigh together as much as its negatives; a label that all samples have, or none, gets 1.

    Args:
        wanted: ``"balanced"``, or one number of at least 0 for each class; None: no weights.
        task: of the bundle.
        targets: of the training data, in the form of the task.

    Raises:
        UsageError: the task has no classes, or the numbers cannot be weights.
    """
    if wanted is None:
        return None
    if task.loss not in ("cross_entropy", "bce"):
        raise _unusable(f"none: {task.loss} has no classes", str(wanted)[:60], "leave it off")
    if isinstance(wanted, str):
        if wanted != BALANCED:
            raise _unusable("balanced, a file, or numbers", repr(wanted), "correct the flag")
        return tuple(_balanced(task, targets).tolist())
    weights = tuple(float(weight) for weight in wanted)
    if len(weights) != task.classes:
        todo = "give one for each class, in the order of the bundle's labels"
        raise _unusable(f"{task.classes} numbers, one for each class", str(len(weights)), todo)
    wrong = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
    if wrong or not any(weights):
        got = str(wrong[0]) if wrong else "zeros only"
        raise _unusable("finite numbers of at least 0, one above 0", got, "correct them")
    return weights


def read_class_weights(text: str, task: Task) -> ClassWeights:
    """The value of ``--class-weights``: ``balanced``, numbers joined by commas, or a file.

    A file has one line for each class: a number, in the order of the bundle's labels, or
    ``label,number`` in any order.

    Raises:
        UsageError: it is none of these, or the file lacks a class.
    """
    if text == BALANCED:
        return BALANCED
    numbers = [_number(part) for part in text.split(",")]
    if all(number is not None for number in numbers):
        return [number for number in numbers if number is not None]
    return _read_file(Path(text), task)


def _read_file(path: Path, task: Task) -> list[float]:
    where = f"{_WHERE} {path}"
    todo = "write one line for each class: a number, or label,number"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise _unusable("a short text file", "one above 16 MiB", todo, where)
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except OSError as error:
        expected = "balanced, numbers joined by commas, or a text file"
        got = (error.strerror or "an unreadable file").lower()
        raise _unusable(expected, got, "correct the flag or the path", where) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unusable("a UTF-8 text file", str(error), todo, where) from error
    values = [_number(row[-1]) for row in rows]
    bad = next((i for i, value in enumerate(values) if value is None), None)
    if bad is not None:
        raise _unusable("a number in every line", repr(",".join(rows[bad])), todo, where)
    weights = [value for value in values if value is not None]
    if not any(len(row) > 1 for row in rows):
        return weights
    return _by_label([row[0].strip() for row in rows], weights, task, where)


def _by_label(names: list[str], weights: list[float], task: Task, where: str) -> list[float]:
    unknown = [name for name in names if name not in task.labels]
    missing = [label for label in task.labels if label not in names]
    if unknown or missing or len(names) != len(set(names)):
        got = (
            f"no {missing[0]!r}" if missing
            else f"unknown {unknown[0]!r}" if unknown
            else "a label twice"
        )
        todo = "write one line label,number for each of the bundle's labels"
        raise _unusable("every label of the bundle once", got, todo, where)
    by_name = dict(zip(names, weights, strict=True))
    return [by_name[label] for label in task.labels]


def _balanced(task: Task, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    weights = np.ones(task.classes)
    samples = len(targets)
    if task.loss == "bce":
        counts = targets.sum(axis=0, dtype=np.float64)
        both = (counts > 0) & (counts < samples)
        weights[both] = (samples - counts[both]) / counts[both]
        return weights
    counts = np.bincount(targets, minlength=task.classes).astype(np.float64)
    occurs = counts > 0
    weights[occurs] = samples / (occurs.sum() * counts[occurs])
    return weights


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _unusable(expected: str, got: str, todo: str, where: str = _WHERE) -> UsageError:
    return UsageError(where=where, expected=expected, got=got, todo=todo)
