"""A CSV file that says what each sample is: one row a sample, one column for its file or text.

The first line names the columns. The sample's column is ``file``, ``filename``, ``file_name``,
``image`` or ``path`` (of a text ``text`` or ``sentence``); by task the others are

- ``cross_entropy``: ``label`` (or ``class``): the name of a class of the bundle.
- ``bce``: one column for each label, 0 or 1 (also true/false, yes/no); or one column ``labels``
  with the names of those that are on, joined by ``;``, ``|`` or ``,``, empty where none is.
- ``mse``, ``l1``: one column of numbers for each output, named like it.

A bundle without names for its labels or outputs takes as many columns as it has, in their order;
and as names the numbers from 0. With names, further columns are left alone.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.dtypes import Targets
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import Task

FILE_COLUMNS = ("file", "filename", "file_name", "image", "path")
TEXT_COLUMNS = ("text", "sentence")
_ONE_LABEL = ("label", "class")
_LABEL_LIST = ("labels",)
_SEPARATORS = re.compile(r"[;|,]")
_SWITCH = {"1": 1, "0": 0, "true": 1, "false": 0, "yes": 1, "no": 0, "": None}
_MAX_SHOWN = 8

Parse = Callable[[Sequence[str]], object]


@dataclass(frozen=True)
class LabelTable:
    """Samples of a CSV file in its order: the cell of each one's column, its line, its target."""

    samples: list[str]
    lines: list[int]
    targets: Targets


def read_label_table(path: Path, task: Task, sample_columns: Sequence[str]) -> LabelTable:
    """Read a whole CSV file.

    Args:
        path: the file, UTF-8, separated by commas.
        task: of the bundle: what the columns mean.
        sample_columns: names that the sample's column may have.

    Raises:
        DataError: it cannot be read, a column is missing, or a cell is no label or number; names
            the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _numbered(file)
            header = [cell.strip() for cell in next(rows, (1, []))[1]]
            sample, parse = _columns(header, task, sample_columns, path)
            return _read_rows(rows, header, sample, parse, task, path)
    except OSError as error:
        got = error.strerror or "an unreadable file"
        raise _refuse(path, "a CSV file", got, "check the path and its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refuse(path, "a CSV file in UTF-8", str(error), "save it as such") from error


def _numbered(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each ends in; empty ones are left out."""
    reader = csv.reader(file)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _read_rows(
    rows: Iterator[tuple[int, list[str]]],
    header: list[str],
    sample: int,
    parse: Parse,
    task: Task,
    path: Path,
) -> LabelTable:
    samples, lines, targets = [], [], []
    for number, row in rows:
        place = _line(path, number)
        if len(row) != len(header):
            got = f"{len(row)}"
            raise _refuse(place, f"{len(header)} cells, as in the first line", got, "correct it")
        cell = row[sample].strip()
        if not cell:
            todo = "fill it or remove the row"
            raise _refuse(place, f"a {header[sample]}", "an empty cell", todo)
        try:
            target = parse(row)
        except _BadCellError as error:
            raise _refuse(place, error.expected, error.got, error.todo) from error
        samples.append(cell)
        lines.append(number)
        targets.append(target)
    if not samples:
        raise _refuse(path, "rows below the first line", "none", "list the samples, one a row")
    dtype = {"cross_entropy": np.int64, "bce": np.uint8}.get(task.loss, np.float32)
    return LabelTable(samples, lines, np.array(targets, dtype))


class _BadCellError(Exception):
    """A cell that cannot be used; the line is known further up."""

    def __init__(self, expected: str, got: str, todo: str) -> None:
        super().__init__(expected)
        self.expected, self.got, self.todo = expected, got, todo


def _columns(
    header: list[str], task: Task, sample_columns: Sequence[str], path: Path
) -> tuple[int, Parse]:
    """Which column names the sample, and how the others become its target."""
    if not header:
        raise _refuse(path, "a first line that names the columns", "an empty file", "add one")
    if len(header) == 1:
        todo = "separate the columns by commas"
        raise _refuse(path, "several columns", f"one, {header[0]!r}", todo)
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise _refuse(path, "every column once", f"{twice!r} twice", "rename one of them")
    sample = _first(header, sample_columns)
    if sample is None:
        expected = f"a column {' or '.join(sample_columns)}"
        raise _refuse(path, expected, _listed(header), "name the column of the samples so")
    others = [i for i in range(len(header)) if i != sample]
    if task.loss == "cross_entropy":
        return sample, _one_label(header, task, path)
    listed = _first(header, _LABEL_LIST) if task.loss == "bce" else None
    if listed is not None and "labels" not in task.labels:
        return sample, _label_list(listed, task)
    columns = _named_columns(header, others, task, path)
    return sample, (_switches if task.loss == "bce" else _numbers)(header, columns)


def _named_columns(
    header: list[str], others: list[int], task: Task, path: Path
) -> list[int]:
    """The columns of the task's labels or outputs, in the task's order."""
    what = "label" if task.loss == "bce" else "output"
    if not task.labels:
        if len(others) != task.classes:
            expected = f"{task.classes} columns besides, since the bundle names no {what}s"
            todo = f"give one column for each {what}, or pack with --labels"
            raise _refuse(path, expected, f"{len(others)}: {_listed(header)}", todo)
        return others
    index = {_composed(header[i]): i for i in others}
    missing = [label for label in task.labels if _composed(label) not in index]
    if missing:
        hint = _hint(missing[0], [header[i] for i in others])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        expected = f"a column for each {what} of the bundle"
        raise _refuse(path, expected, f"no {missing[0]!r}{hint}{more}", "add or rename columns")
    return [index[_composed(label)] for label in task.labels]


def _one_label(header: list[str], task: Task, path: Path) -> Parse:
    column = _first(header, _ONE_LABEL)
    if column is None:
        expected = f"a column {' or '.join(_ONE_LABEL)}"
        raise _refuse(path, expected, _listed(header), "name the column of the classes so")
    index, where = _label_index(task), column
    return lambda row: _look_up(row[where].strip(), index, task)


def _label_list(column: int, task: Task) -> Parse:
    index = _label_index(task)

    def parse(row: Sequence[str]) -> list[int]:
        on, cell = [0] * task.classes, row[column].strip()
        names = [cell] if _composed(cell) in index else _SEPARATORS.split(cell)
        for name in (name.strip() for name in names):
            if name:
                on[_look_up(name, index, task)] = 1
        return on

    return parse


def _switches(header: list[str], columns: list[int]) -> Parse:
    def parse(row: Sequence[str]) -> list[int]:
        on = []
        for column in columns:
            cell = row[column].strip()
            value = _SWITCH.get(cell.lower().removesuffix(".0"))
            if value is None:
                got = f"{cell!r} in column {header[column]!r}"
                raise _BadCellError("0 or 1 for each label", got, "correct the cell")
            on.append(value)
        return on

    return parse


def _numbers(header: list[str], columns: list[int]) -> Parse:
    def parse(row: Sequence[str]) -> list[float]:
        values = []
        for column in columns:
            cell = row[column].strip()
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not abs(value) < float(np.finfo(np.float32).max):
                got = f"{cell!r} in column {header[column]!r}"
                raise _BadCellError("finite numbers", got, "correct the cell or remove the row")
            values.append(value)
        return values

    return parse


def _label_index(task: Task) -> dict[str, int]:
    names = task.labels or tuple(str(number) for number in range(task.classes))
    return {_composed(name): i for i, name in enumerate(names)}


def _look_up(name: str, index: dict[str, int], task: Task) -> int:
    found = index.get(_composed(name))
    if found is None:
        got = f"{printable(name)[:80]!r}{_hint(name, list(index))}"
        expected = f"one of the bundle's {task.classes} labels"
        raise _BadCellError(expected, got, "correct the label, or pack with the labels of the data")
    return found


def _first(header: list[str], names: Sequence[str]) -> int | None:
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in names if name in lower), None)


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), [x.lower() for x in known], n=1)
    original = next((x for x in known if close and x.lower() == close[0]), None)
    return f" (did you mean {printable(original)!r}?)" if original else ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(printable(name)) for name in names[:_MAX_SHOWN])
    return shown + (f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else "")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _line(path: Path, number: int) -> str:
    return f"{printable(path)}, line {number}"


def _refuse(where: Path | str, expected: str, got: str, todo: str) -> DataError:
    return DataError(where=printable(where), expected=expected, got=got, todo=todo)
