from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s2a_edge.link.board_process import own_environment
from s2a_edge.link.dir_transport import DirTransport
from s2a_edge.link.flash import flash
from s2a_edge.link.install import BoardChecks, Options
from s2a_edge.link.releases import Releases
from s2a_edge.link.start import start
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import DeviceError, LinkError, UsageError
from tests.link.conftest import FACTS

GOOD, FAILING = ["true"], ["false"]


def put(bundle: Path, board: Path, checks: BoardChecks, options: Options | None = None) -> str:
    with Bundle.open(bundle) as opened:
        return flash(opened, DirTransport(board, checks), options=options).release


@pytest.fixture
def board(bundles: Path, tmp_path: Path, checks: BoardChecks) -> Path:
    """A board with release ``a`` before ``b``."""
    for name in ("a", "b"):
        put(bundles / name, tmp_path / "board", checks)
    return tmp_path / "board"


def test_the_program_gets_the_release(board: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert start(board, ["sh", "-c", f"echo {{bundle}} {{runs}} > {out}"]) == 0
    releases = Releases(board)
    assert out.read_text().split() == [
        str(releases.path(releases.current() or "")), str(board / "runs"),
    ]  # fmt: skip


def test_three_failures_in_a_row_bring_the_previous_release_back(board: Path) -> None:
    releases, notes = Releases(board), list[str]()
    second, first = releases.current(), releases.previous()
    assert second is not None
    for _ in range(3):
        assert start(board, FAILING, on_note=notes.append) == 1
        assert releases.current() == second
    assert notes == []
    assert start(board, GOOD, on_note=notes.append) == 0
    assert releases.current() == first
    assert notes == [f"release {second[:12]}: 3 failed starts; back to release {str(first)[:12]}"]
    assert releases.mark(second).bad == "3 failed starts"
    # When the first keeps failing too, there is no way back to what failed before.
    for _ in range(4):
        start(board, FAILING, on_note=notes.append)
    assert releases.current() == first
    assert "no way back" in notes[-1]


def test_a_good_start_forgets_failures(board: Path) -> None:
    releases = Releases(board)
    name = releases.current() or ""
    for command in (FAILING, FAILING, GOOD, FAILING):
        start(board, command)
    assert releases.mark(name).failed_starts == 1
    start(board, ["sh", "-c", "sleep 0.3; false"], good_after_s=0.05)
    assert releases.mark(name).failed_starts == 0


def test_a_start_that_takes_everything_down_counts(board: Path) -> None:
    """The process that starts is killed as well: what a power cut looks like from here."""
    code = (
        "import os, signal, sys; from pathlib import Path; from s2a_edge.link.start import start\n"
        "start(Path(sys.argv[1]), ['sh', '-c', f'kill -9 {os.getpid()}; sleep 9'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(board)], check=False, env=own_environment()
    )
    assert done.returncode == -signal.SIGKILL
    releases = Releases(board)
    assert releases.mark(releases.current() or "").failed_starts == 1


def test_being_asked_to_stop_is_no_failure(board: Path) -> None:
    releases = Releases(board)
    assert start(board, ["sh", "-c", "kill -TERM $$"]) == 128 + signal.SIGTERM
    assert releases.mark(releases.current() or "").failed_starts == 0
    parent = os.getpid()
    assert start(board, ["sh", "-c", f"kill -TERM {parent}; sleep 20"]) == 128 + signal.SIGTERM


def test_a_release_put_on_a_card_elsewhere_is_checked_at_its_first_start(
    bundles: Path, board: Path, checks: BoardChecks
) -> None:
    def failing(*_: object) -> float:
        raise DeviceError(where="health check", expected="a step", got="none", todo="-")

    releases, notes = Releases(board), list[str]()
    before = releases.current()
    broken = BoardChecks(detect=lambda: FACTS, rehearse=failing)
    name = put(bundles / "a", board, broken, Options(elsewhere=True))
    assert releases.current() == name
    assert start(board, GOOD, checks=broken, on_note=notes.append) == 0
    assert releases.current() == before
    assert "health check" in notes[-1]
    put(bundles / "a", board, broken, Options(elsewhere=True))
    assert start(board, GOOD, checks=checks, on_note=notes.append) == 0
    assert releases.mark(name).good


def test_nothing_to_start(tmp_path: Path, board: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LinkError, match="an installed release"):
        start(tmp_path / "empty", GOOD)
    with pytest.raises(UsageError, match="a program that can be run"):
        start(board, ["/no/such/program"])
