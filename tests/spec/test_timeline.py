from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.memory_plan import MemoryKind
from s2a_edge.spec.timeline import Timeline, pack_timeline, read_timeline

SAMPLE = Timeline(
    "s2a-timeline",
    ("forward", "loss", "backward"),
    ("kept", "x", "dx"),
    (MemoryKind.SAVED, MemoryKind.WORKING, MemoryKind.GRADIENTS),
    (100, 30, 20),
    (0, 0, 2),
    (3, 2, 3),
)


def written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "t.timeline.json.gz").write_bytes(content)
    return tmp_path / "t.timeline.json.gz"


def test_it_comes_back_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    assert read_timeline(written(tmp_path, pack_timeline(SAMPLE))) == SAMPLE
    assert pack_timeline(SAMPLE) == pack_timeline(SAMPLE)


def test_who_is_alive_when() -> None:
    live = SAMPLE.live_bytes()
    assert live[MemoryKind.SAVED] == [100, 100, 100]
    assert live[MemoryKind.WORKING] == [30, 30, 0]
    assert live[MemoryKind.GRADIENTS] == [0, 0, 20]


@pytest.mark.parametrize(
    ("key", "value"),
    [("starts", [0, 0]), ("ends", [3, 2, 4]), ("starts", [0, 0, -1]), ("kinds", ["x"] * 3)],
)
def test_what_cannot_be_is_refused(tmp_path: Path, key: str, value: object) -> None:
    found = json.loads(gzip.decompress(pack_timeline(SAMPLE)))
    path = written(tmp_path, gzip.compress(json.dumps({**found, key: value}).encode()))
    with pytest.raises(BundleError, match="timeline"):
        read_timeline(path)


@pytest.mark.parametrize("content", [b"", b"junk", pack_timeline(SAMPLE)[:-9], gzip.compress(b"[")])
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match="timeline"):
        read_timeline(written(tmp_path, content))
