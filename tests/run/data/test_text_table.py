from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.data import open_data
from s2a_edge.run.data.batches import batches
from s2a_edge.run.data.text_table import TextTable, load_tokenizer
from s2a_edge.spec.errors import BundleError, DataError, DeviceError
from s2a_edge.spec.manifest import InputSpec, Task, TextPreprocessing
from tests.run.data.words import VOCABULARY, write_tokenizer

LENGTH = 6
NAMES = ("input_ids", "attention_mask", "token_type_ids")


YES_NO = Task("cross_entropy", 2, ("no", "yes"))


def bundle(task: Task = YES_NO, pad_id: int = 0) -> Any:
    inputs = tuple(InputSpec(name, "int64", (LENGTH,), "tensor") for name in NAMES)
    spec = TextPreprocessing("text", "tokenizer.json", LENGTH, pad_id)
    return SimpleNamespace(inputs=inputs, preprocessing=spec, task=task)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    load_tokenizer.cache_clear()
    write_tokenizer(tmp_path / "tokenizer.json", pads=True)
    (tmp_path / "labels.csv").write_text(
        'text,label\n"the film, was good",yes\nbad,no\n"very very very very bad book",no\n')
    return tmp_path


def ids(*words: str) -> list[int]:
    return [VOCABULARY[word] for word in words]


def test_texts_become_tokens_cut_off_or_padded(folder: Path) -> None:
    for path in (folder / "labels.csv", folder):
        data = open_data(path, bundle(), folder)
        assert isinstance(data, TextTable) and len(data) == 3
    assert data.targets.tolist() == [1, 0, 0]
    (part,) = batches(data, 3, 3, shuffle=False)
    assert part.inputs["input_ids"].tolist() == [
        ids("[CLS]", "the", "film", "[UNK]", "was", "[SEP]"),
        ids("[CLS]", "bad", "[SEP]", "[PAD]", "[PAD]", "[PAD]"),
        ids("[CLS]", "very", "very", "very", "very", "[SEP]")]
    assert part.inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0], [1] * 6]
    assert not part.inputs["token_type_ids"].any()
    assert data.name(1) == "labels.csv, line 3"
    assert data.check().decode_bytes == 0 and data.resident_bytes > 0


def test_padding_is_the_bundles(folder: Path) -> None:
    data = open_data(folder / "labels.csv", bundle(pad_id=7), folder)
    rows = {name: np.ones(LENGTH, np.int64) for name in NAMES}
    data.load(1, rows)
    assert rows["input_ids"].tolist() == [*ids("[CLS]", "bad", "[SEP]"), 7, 7, 7]


def test_texts_may_have_labels_or_numbers(folder: Path) -> None:
    (folder / "n.csv").write_text("sentence,stars\ngood,4.5\nbad,1\n")
    data = open_data(folder / "n.csv", bundle(Task("mse", 1, ("stars",))), folder)
    assert data.targets.tolist() == [[4.5], [1.0]]
    (folder / "m.csv").write_text("text,labels\ngood film,a;b\nbad,\n")
    data = open_data(folder / "m.csv", bundle(Task("bce", 2, ("a", "b"))), folder)
    assert data.targets.tolist() == [[1, 1], [0, 0]]


def test_the_fingerprint_tells_texts_apart(folder: Path) -> None:
    first = open_data(folder, bundle(), folder).fingerprint
    assert open_data(folder, bundle(), folder).fingerprint == first
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("bad,no", "good,no"))
    assert open_data(folder, bundle(), folder).fingerprint != first


def test_arrays_of_tokens_are_taken_as_well(folder: Path) -> None:
    rows = {name: np.zeros((2, LENGTH), np.int64) for name in NAMES}
    np.savez(folder / "d.npz", labels=np.array([0, 1]), **rows)  # type: ignore[arg-type]  # names are data
    assert len(open_data(folder / "d.npz", bundle(), folder)) == 2


def test_class_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "yes").mkdir()
    with pytest.raises(DataError, match=r"a CSV file of texts .* got a folder without labels.csv"):
        open_data(tmp_path, bundle(), tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    ("words,label\ngood,yes\n", "column text or sentence, got 'words', 'label'"),
    ("text,label\n,yes\n", "line 2: expected a text, got an empty cell"),
    ("text,label\ngood,maybe\n", "line 2: .* got 'maybe'")])
def test_bad_tables_are_one_line(folder: Path, content: str, message: str) -> None:
    (folder / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        open_data(folder, bundle(), folder)


def test_without_the_library_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DeviceError, match=r"pip install 's2a-edge\[text\]'"):
        open_data(folder, bundle(), folder)


@pytest.mark.parametrize("content", ["{}", "no json"])
def test_a_tokenizer_that_cannot_be_read_is_an_error(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json: expected a tokenizer"):
        open_data(folder, bundle(), folder)
