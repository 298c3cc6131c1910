"""What people type as options."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2a_edge.cli.values import parse_counts, parse_names, parse_reals, parse_shape, read_labels
from s2a_edge.spec.errors import UsageError


def test_shape() -> None:
    assert parse_shape("3x224X224", flag="--input") == (3, 224, 224)


@pytest.mark.parametrize("text", ["", "3x", "3x-1", "0x3", "3,224", "axb", "٣x٣"])
def test_not_a_shape(text: str) -> None:
    with pytest.raises(UsageError, match="--input"):
        parse_shape(text, flag="--input")


def test_names() -> None:
    assert parse_names(" bias, head,") == ("bias", "head")


def test_reals_are_one_or_three() -> None:
    assert parse_reals("0.5", flag="--std") == (0.5, 0.5, 0.5)
    assert parse_reals("0.485,0.456,0.406", flag="--mean") == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a"])
def test_not_reals(text: str) -> None:
    with pytest.raises(UsageError, match="--mean"):
        parse_reals(text, flag="--mean")


def test_counts_are_sorted_and_once_each() -> None:
    assert parse_counts("8,2,4,2", flag="--micro-batch") == (2, 4, 8)


@pytest.mark.parametrize("text", ["", "0", "2,-1", "x"])
def test_not_counts(text: str) -> None:
    with pytest.raises(UsageError, match="--micro-batch"):
        parse_counts(text, flag="--micro-batch")


def test_labels_keep_their_order(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("zebra\n ape \n\n", encoding="utf-8")
    assert read_labels(file) == ("zebra", "ape")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"a\n\nb\n", "an empty line 2"),
        (b"a\nb\na\n", "'a' again in line 3"),
        (b"a\n\xff\n", "no UTF-8 at offset 2"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, content: bytes, got: str) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=got):
        read_labels(file)


def test_labels_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_labels(tmp_path / "labels.txt")
