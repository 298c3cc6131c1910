from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from s2a_edge.run.data.label_table import FILE_COLUMNS, LabelTable, read_label_table
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import Task
from s2a_edge.spec.task_ports import Loss

ANIMALS = ("ant", "bee", "sea lion")


def read(tmp_path: Path, content: str | bytes, loss: Loss, labels: tuple[str, ...] = ANIMALS,
         classes: int = 0) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_label_table(path, Task(loss, classes or len(labels), labels), FILE_COLUMNS)


@pytest.mark.parametrize("content", [
    "file,label\na.png,bee\nb.png,sea lion\n",
    "label,filename,source\nbee,a.png,x\nsea lion,b.png,\n",  # further columns are left alone
    "\ufeffImage , Class\r\n a.png , bee \r\n\r\nb.png,sea lion\r\n",  # as spreadsheets save it
    'path,label\n"a.png","bee"\n"b.png","sea lion"',
])
def test_one_class_an_image(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content, "cross_entropy")
    assert table.samples == ["a.png", "b.png"]
    assert table.targets.tolist() == [1, 2] and table.targets.dtype == np.int64


@pytest.mark.parametrize("content", [
    "file,ant,bee,sea lion\na.png,1,0,1\nb.png,0,0,0\n",
    "sea lion,file,bee,ant\nTrue,a.png,no,yes\nfalse,b.png,0,0.0\n",
    "file,labels\na.png,ant;sea lion\nb.png,\n",
    "file,labels\na.png,sea lion | ant\nb.png,\n",
    'file,labels\na.png,"ant,sea lion"\nb.png,""\n',
])
def test_several_labels_an_image(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content, "bce")
    assert table.targets.tolist() == [[1, 0, 1], [0, 0, 0]] and table.targets.dtype == np.uint8


def test_a_label_may_hold_a_separator(tmp_path: Path) -> None:
    labels = ("cats, dogs", "other")
    table = read(tmp_path, 'file,labels\na.png,"cats, dogs"\nb.png,other\n', "bce", labels)
    assert table.targets.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_numbers(tmp_path: Path, loss: Loss) -> None:
    content = "weight,file,note,width\n1e3,a.png,x,-2\n.5,b.png,y,7\n"
    table = read(tmp_path, content, loss, ("width", "weight"))
    assert table.targets.tolist() == [[-2, 1000], [7, 0.5]] and table.targets.dtype == np.float32
    assert table.lines == [2, 3]


def test_without_names_columns_count_in_their_order(tmp_path: Path) -> None:
    table = read(tmp_path, "x,file,y\n1,a.png,2\n", "mse", (), 2)
    assert table.targets.tolist() == [[1, 2]]
    table = read(tmp_path, "file,b,a\na.png,1,0\n", "bce", (), 2)
    assert table.targets.tolist() == [[1, 0]]
    assert read(tmp_path, "file,label\na.png,2\n", "cross_entropy", (), 3).targets.tolist() == [2]


@pytest.mark.parametrize(("loss", "content", "message"), [
    ("cross_entropy", "", "names the columns, got an empty file"),
    ("cross_entropy", "file;label\na;ant\n", "separate the columns by commas"),
    ("cross_entropy", "file,label,file\n", "'file' twice"),
    ("cross_entropy", "picture,label\na,ant\n", "column file or .* got 'picture', 'label'"),
    ("cross_entropy", "file,kind\na,ant\n", "column label or class, got 'file', 'kind'"),
    ("cross_entropy", "file,label\n", "rows below the first line"),
    ("cross_entropy", "file,label\na,ant\nb,bea\n",
     r"line 3: expected one of the bundle's 3 labels, got 'bea' \(did you mean 'bee'\?\)"),
    ("cross_entropy", "file,label\n,ant\n", "line 2: expected a file, got an empty cell"),
    ("cross_entropy", "file,label\na\n", "line 2: expected 2 cells, .* got 1"),
    ("cross_entropy", b"file,label\n\xff,ant\n", "UTF-8"),
    ("bce", "file,ant,bee\na,1,0\n", "a column for each label of the bundle, got no 'sea lion'"),
    ("bce", "file,ant,bee,sea-lion\na,1,0,0\n", r"no 'sea lion' \(did you mean 'sea-lion'\?\)"),
    ("bce", "file,ant,bee,sea lion\na,1,2,0\n", "line 2: .*0 or 1.* got '2' in column 'bee'"),
    ("bce", "file,ant,bee,sea lion\na,1,,0\n", "got '' in column 'bee'"),
    ("bce", "file,labels\na,ant;wasp\n", "line 2: .* got 'wasp'"),
    ("mse", "file,ant,bee\na,1,2\n", "a column for each output of the bundle, got no 'sea lion'"),
    ("mse", "file,ant,bee,sea lion\na,1,two,3\n", "line 2: .*finite numbers, got 'two'"),
    ("mse", "file,ant,bee,sea lion\na,1,,3\n", "got '' in column 'bee'"),
    ("mse", "file,ant,bee,sea lion\na,1,NaN,3\n", "got 'NaN' in column 'bee'"),
    ("mse", "file,ant,bee,sea lion\na,1,2,-inf\n", "got '-inf' in column 'sea lion'"),
    ("l1", "file,ant,bee,sea lion\na,1,2,1e39\n", "got '1e39'"),
])
def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path, loss: Loss,
                                                  content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, content, loss)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("loss", "content"), [
    ("mse", "file,a,b,c\nx,1,2,3\n"), ("bce", "file,a\nx,1\n")])
def test_without_names_the_number_of_columns_must_fit(tmp_path: Path, loss: Loss, content: str,
                                                      ) -> None:
    with pytest.raises(DataError, match="expected 2 columns besides"):
        read(tmp_path, content, loss, (), 2)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check the path and its permissions"):
        read_label_table(tmp_path, Task("mse", 1, ()), FILE_COLUMNS)
