from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from s2a_edge.spec import strict_json
from s2a_edge.spec.errors import BundleError


@dataclass(frozen=True)
class Grown:
    """A class to which a later version added ``extra``."""

    name: str
    extra: int | None = None


def read(text: str) -> Grown:
    return strict_json.read(Grown, strict_json.parse(text, where="f"), file="f")


def test_a_key_with_a_default_may_be_missing_and_no_other() -> None:
    assert read('{"name": "a"}') == Grown("a")
    assert read('{"name": "a", "extra": 3}') == Grown("a", 3)
    with pytest.raises(BundleError, match="no key name"):
        read('{"extra": 3}')
    with pytest.raises(BundleError, match="unknown key 'other'"):
        read('{"name": "a", "other": 1}')
    with pytest.raises(BundleError, match="extra"):
        read('{"name": "a", "extra": "three"}')


def test_what_is_written_is_complete() -> None:
    assert json.loads(json.dumps(strict_json.plain(Grown("a")))) == {"name": "a", "extra": None}
