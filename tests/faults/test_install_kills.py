"""A process that installs a release is killed: the old release runs on, the next flash repairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from s2a_edge.link.board_process import own_environment
from tests.run.toy_bundle import write_toy_bundle

KILLER = Path(__file__).with_name("install_killer.py")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_toy_bundle(folder / "a")
    write_toy_bundle(folder / "b", seed=1)
    return folder


def kill_at(bundles: Path, work: Path, points: list[int]) -> list[dict[str, Any]]:
    command = [sys.executable, str(KILLER), str(bundles), str(work), *map(str, points)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=own_environment()
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_rollback_killed_at_every_point_still_leads_back(bundles: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(KILLER), "--rollback", str(bundles), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=own_environment()
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 8
    assert [f for f in found if not f["whole"] or not f["back"]] == []
    assert [f["survived"] for f in found] == [False] * (len(found) - 1) + [True]


def check(bundles: Path, work: Path, count: int) -> None:
    (header,) = kill_at(bundles, work / "first", [])
    total = header["points"]
    assert total >= 100
    points = sorted({total * i // count for i in range(count)})
    _, *kills = kill_at(bundles, work / "second", points)
    assert len(kills) == len(points)
    assert [k for k in kills if k["survived"] or not k["whole"] or not k["repaired"]] == []
    # Most of the work lies before the switch; some kills came behind it.
    in_use = [k["current"] == header["old"] for k in kills]
    assert in_use == sorted(in_use, reverse=True)
    assert in_use[0]


def test_killed_at_some_points(bundles: Path, tmp_path: Path) -> None:
    check(bundles, tmp_path, 12)


@pytest.mark.faults_long
def test_killed_at_every_point(bundles: Path, tmp_path: Path) -> None:
    check(bundles, tmp_path, 10_000)
