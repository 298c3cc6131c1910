from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from s2a_edge.pack.capture.tokenizer import find_tokenizer, text_preprocessing
from s2a_edge.spec.errors import SourceError
from tests.run.data.words import write_tokenizer

SHAPES = {"input_ids": (16,), "attention_mask": (16,)}


def edited(path: Path, **changes: Any) -> Path:
    content = json.loads(write_tokenizer(path).read_text())
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_a_folders_tokenizer_is_found(tmp_path: Path) -> None:
    assert find_tokenizer(str(tmp_path)) is None
    file = write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text("{}")
    assert find_tokenizer(str(tmp_path)) == find_tokenizer(str(tmp_path / "config.json")) == file


def test_padding_is_found_where_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    assert text_preprocessing(edited(file), SHAPES).pad_id == 0  # by the usual name [PAD]
    found = text_preprocessing(edited(file, padding={"pad_id": 9}), SHAPES)
    assert (found.pad_id, found.max_length, found.tokenizer) == (9, 16, "tokenizer.json")
    tokens = [{"id": 5, "content": "<nothing>"}]
    edited(file, added_tokens=tokens)
    (tmp_path / "config.json").write_text('{"pad_token_id": 3}')
    assert text_preprocessing(file, SHAPES).pad_id == 3
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "<nothing>"}}')
    assert text_preprocessing(file, SHAPES).pad_id == 5
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<nothing>"}')
    assert text_preprocessing(file, SHAPES).pad_id == 5


@pytest.mark.parametrize(("content", "message"), [
    ("no json", "no JSON"), ("[]", "JSON of another kind"), ('{"model": 3}', "another kind"),
    ('{"model": {}}', "none that says which token is padding")])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        text_preprocessing(tmp_path / "t.json", SHAPES)


def test_a_model_without_token_ids_is_refused(tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path / "t.json")
    with pytest.raises(SourceError, match=r"input input_ids \[tokens\], got image"):
        text_preprocessing(file, {"image": (3, 8, 8)})
    with pytest.raises(SourceError, match=r"[Nn]o such file"):
        text_preprocessing(tmp_path / "none.json", SHAPES)
