"""How a text becomes token ids: the source's ``tokenizer.json``, and which id is padding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import TextPreprocessing
from s2a_edge.spec.text_inputs import TOKENIZER_NAME, TOKENS_INPUT

_MAX_BYTES = 2**27
_USUAL_PADS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")


def find_tokenizer(name: str) -> Path | None:
    """The ``tokenizer.json`` of a transformers folder (or beside its configuration), if any."""
    path = Path(name)
    file = (path if path.is_dir() else path.parent) / TOKENIZER_NAME
    return file if file.is_file() else None


def text_preprocessing(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> TextPreprocessing:
    """What the manifest says of texts.

    Args:
        file: a ``tokenizer.json`` of the tokenizers library; its ``tokenizer_config.json`` and
            ``config.json`` are looked at where it names no padding.
        shapes: of the data inputs, without the batch.

    Raises:
        SourceError: the model takes no token ids, or the file is no tokenizer or has no padding.
    """
    tokens = shapes.get(TOKENS_INPUT)
    if tokens is None or len(tokens) != 1:
        raise SourceError(where=f"--tokenizer {file}", expected=f"a model with an input "
                          f"{TOKENS_INPUT} [tokens]", got=", ".join(shapes) or "no input",
                          todo="leave --tokenizer off")
    pad_id = _pad_id(file, _read(file))
    return TextPreprocessing(kind="text", tokenizer=TOKENIZER_NAME, max_length=tokens[0],
                             pad_id=pad_id)


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise _unusable(file, "a file above 128 MiB")
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unusable(file, error.strerror or "an unreadable file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unusable(file, f"no JSON: {error}"[:200]) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise _unusable(file, "JSON of another kind")
    return content


def _pad_id(file: Path, content: dict[str, Any]) -> int:
    """By the tokenizer's own padding, the token that its configuration names, or the usual ones."""
    padding = content.get("padding")
    if isinstance(padding, dict) and isinstance(padding.get("pad_id"), int):
        return int(padding["pad_id"])
    beside = {name: _beside(file, name) for name in ("tokenizer_config.json", "config.json")}
    named = beside["tokenizer_config.json"].get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    ids = {str(token.get("content")): token.get("id") for token in content.get("added_tokens", ())
           if isinstance(token, dict)}
    for token in (named, *_USUAL_PADS):
        pad_id = ids.get(str(token))
        if isinstance(pad_id, int):
            return pad_id
    found = beside["config.json"].get("pad_token_id")
    if isinstance(found, int):
        return found
    raise _unusable(file, "none that says which token is padding")


def _beside(file: Path, name: str) -> dict[str, Any]:
    path = file.with_name(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _unusable(file: Path, got: str) -> SourceError:
    return SourceError(where=f"tokenizer {file}", expected="a tokenizer.json of the tokenizers "
                       "library with a padding token", got=got,
                       todo="give another with --tokenizer, or train on .npz arrays of token ids")
