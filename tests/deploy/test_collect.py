from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy.board_fixture import DEPLOY


@pytest.fixture
def board(tmp_path: Path) -> Path:
    root = tmp_path / "board"
    for folder in ("photos/train/cat", "runs", "releases/one", "releases/two"):
        (root / folder).mkdir(parents=True)
    point(root, "one")
    add_photo(root, "cat/1.jpg")
    return root


def point(root: Path, release: str) -> None:
    (root / "current").unlink(missing_ok=True)
    (root / "current").symlink_to(f"releases/{release}")


def add_photo(root: Path, name: str) -> None:
    time.sleep(0.02)  # file systems count time in ticks
    (root / "photos/train" / name).write_bytes(b"jpeg")


def collect(root: Path, step: str = "begin", result: str = "success", status: str = "0") -> int:
    variables = {**os.environ, "SERVICE_RESULT": result, "EXIT_STATUS": status}
    command = [str(DEPLOY / "bin/s2a-edge-collect"), step, str(root)]
    return subprocess.run(command, env=variables, capture_output=True, check=False).returncode


def photos_of_the_night(root: Path) -> list[str]:
    data = root / "night/data"
    return sorted(str(p.relative_to(data)) for p in data.rglob("*") if p.is_file())


def begin_run(root: Path) -> None:
    (root / "runs/night").mkdir()
    (root / "runs/night/run.json").write_text("{}")


def test_a_night_trains_what_is_new_and_only_then(board: Path) -> None:
    assert collect(board) == 0
    assert photos_of_the_night(board) == ["cat/1.jpg"]
    begin_run(board)
    assert collect(board, "end") == 0
    assert collect(board) == 1
    add_photo(board, "cat/2.jpg")
    assert collect(board) == 0
    assert photos_of_the_night(board) == ["cat/1.jpg", "cat/2.jpg"]
    kept = [p.name for p in (board / "runs").iterdir()]
    assert len(kept) == 1 and kept[0].startswith("night-")


@pytest.mark.parametrize(
    ("result", "status"), [("success", "143"), ("watchdog", "6"), ("oom-kill", "9")]
)
def test_an_interrupted_night_goes_on_with_its_own_images(
    board: Path, result: str, status: str
) -> None:
    assert collect(board) == 0
    begin_run(board)
    add_photo(board, "cat/2.jpg")
    assert collect(board, "end", result, status) == 0
    assert collect(board) == 0
    assert photos_of_the_night(board) == ["cat/1.jpg"]
    assert (board / "runs/night/run.json").exists()
    assert collect(board, "end") == 0
    assert collect(board) == 0  # what came meanwhile is new
    assert photos_of_the_night(board) == ["cat/1.jpg", "cat/2.jpg"]


def test_another_release_begins_a_night_anew(board: Path) -> None:
    assert collect(board) == 0
    begin_run(board)
    point(board, "two")
    assert collect(board) == 0
    assert not (board / "runs/night").exists()
    assert len(list((board / "runs").iterdir())) == 1


def test_no_photos_is_nothing_to_do_and_an_error_is_none(board: Path, tmp_path: Path) -> None:
    assert collect(tmp_path) == 1
    assert collect(board, "middle") == 255
    (board / "night").write_text("in the way")
    assert collect(board) == 255
