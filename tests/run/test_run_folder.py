from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.run_folder import (
    RunFolder,
    RunRecord,
    checkpoint_path,
    read_run,
    refuse_existing,
)
from s2a_edge.run.settings import FitSettings
from s2a_edge.spec.errors import CheckpointError, UsageError

RECORD = RunRecord(
    format="s2a-run",
    format_version=1,
    created="2026-01-31T12:00:00+00:00",
    bundle="/bundles/a.s2a",
    bundle_hash="ab" * 32,
    data="/data/train",
    val=None,
    effective_batch=4,
    settings=FitSettings(3, 0.1, 0.0, 0.0, True, 0, Hyperparameters()),
    versions={"numpy": "2.4.0"},
)


def test_the_record_comes_back(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a" / "run") as folder:
        folder.begin(RECORD)
    assert read_run(tmp_path / "a" / "run") == RECORD


def test_two_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path), pytest.raises(CheckpointError, match="another process"):
        RunFolder(tmp_path)
    with RunFolder(tmp_path):
        pass


def test_halves_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (".last.safetensors.x1", ".best.safetensors.y2", ".run.json.z3"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"kept")
    with RunFolder(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".mine", "metrics.jsonl"]


def test_metrics_after_a_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.begin(RECORD)
        folder.add_metrics({"step": 1})
        length_bytes = folder.sync_metrics()
        folder.add_metrics({"step": 2})
    with RunFolder(tmp_path) as folder:
        folder.cut_metrics(length_bytes)
        folder.add_metrics({"step": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


def test_which_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train first"):
        checkpoint_path(tmp_path)
    (tmp_path / "last.safetensors").touch()
    assert checkpoint_path(tmp_path).name == "last.safetensors"
    with pytest.raises(CheckpointError, match="needs validation data"):
        checkpoint_path(tmp_path, "best")
    (tmp_path / "best.safetensors").touch()
    assert checkpoint_path(tmp_path).name == "best.safetensors"
    assert checkpoint_path(tmp_path, "last").name == "last.safetensors"


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    refuse_existing(tmp_path)
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(UsageError, match="--resume"):
        refuse_existing(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{}", '{"format": "s2a-run"}', "\x00\xff"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError):
        read_run(tmp_path)
