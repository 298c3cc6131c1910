from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.class_weights import read_class_weights, resolve_class_weights
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.manifest import Task

CLASSES = Task("cross_entropy", 3, ("ant", "bee", "cat"))
LABELS = Task("bce", 3, ("ant", "bee", "cat"))
INDICES = np.array([0, 0, 0, 1])


def test_balanced_classes_weigh_the_same_in_all() -> None:
    weights = resolve_class_weights("balanced", CLASSES, INDICES)
    assert weights is not None
    # 4 samples, 2 classes that occur: 4 / (2 * 3) and 4 / (2 * 1); the third is not touched.
    assert weights == pytest.approx((2 / 3, 2.0, 1.0))
    assert np.mean([weights[i] for i in INDICES]) == pytest.approx(1.0)


def test_balanced_labels_weigh_positives_as_much_as_negatives() -> None:
    on = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], np.uint8)
    assert resolve_class_weights("balanced", LABELS, on) == (3.0, 1.0, 1.0)


def test_given_numbers_are_taken_as_they_are() -> None:
    assert resolve_class_weights([1, 2.5, 0], CLASSES, INDICES) == (1.0, 2.5, 0.0)
    assert resolve_class_weights(None, CLASSES, INDICES) is None


@pytest.mark.parametrize(("wanted", "message"), [
    ([1, 2], "3 numbers, one for each class, got 2"), ([1, 2, 3, 4], "got 4"),
    ([1, -1, 1], "got -1"), ([1, float("nan"), 1], "got nan"), ([1, float("inf"), 1], "got inf"),
    ([0, 0, 0], "zeros only"), ("even", "got 'even'"),
])
def test_numbers_that_cannot_be_weights_are_refused(wanted: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_class_weights(wanted, CLASSES, INDICES)


@pytest.mark.parametrize("task", [Task("mse", 3, ()), Task("output", 0, (), "loss")])
def test_tasks_without_classes_take_none(task: Task) -> None:
    with pytest.raises(UsageError, match="has no classes"):
        resolve_class_weights("balanced", task, np.zeros((2, 3)))


@pytest.mark.parametrize(("content", "expected"), [
    ("1\n2\n3\n", [1, 2, 3]), ("1\r\n\r\n2.5\r\n3", [1, 2.5, 3]),
    ("cat,3\nant,1\nbee,2\n", [1, 2, 3]), ("\ufeffant, 1\nbee, 2\ncat, 3", [1, 2, 3]),
])
def test_files(tmp_path: Path, content: str, expected: list[float]) -> None:
    path = tmp_path / "weights.csv"
    path.write_text(content, encoding="utf-8")
    assert read_class_weights(str(path), CLASSES) == expected


def test_flags() -> None:
    assert read_class_weights("balanced", CLASSES) == "balanced"
    assert read_class_weights("1,2.5, 3", CLASSES) == [1.0, 2.5, 3.0]


@pytest.mark.parametrize(("content", "message"), [
    (b"1\nx\n3\n", "a number in every line, got 'x'"), (b"ant,1\nbee,2\n", "no 'cat'"),
    (b"ant,1\nbee,2\ncat,3\ndog,4\n", "unknown 'dog'"),
    (b"ant,1\nant,2\nbee,2\ncat,3\n", "a label twice"), (b"\xff\xfe\x00", "UTF-8"),
])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes, message: str,
                                               ) -> None:
    path = tmp_path / "weights.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_class_weights(str(path), CLASSES)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_class_weights(str(tmp_path / "none.csv"), CLASSES)
