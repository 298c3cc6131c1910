"""``flash``, ``releases``, ``rollback``, ``start`` on a folder, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from s2a_edge.cli import app
from s2a_edge.cli.flash_progress import estimate
from s2a_edge.link.flash import Flashing
from s2a_edge.link.releases import Releases
from tests.run.toy_bundle import write_toy_bundle


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_toy_bundle(folder / "a")
    write_toy_bundle(folder / "b", seed=1)
    return folder


def test_flash_list_roll_back_start(place: Path) -> None:
    board = f"dir:{place}/board"
    code, out, err = run("flash", place / "a", board)
    assert code == 0, err
    assert "is in use; sent 1" in out
    assert err.startswith("sending 1")
    assert "board: health check" in err
    code, out, _ = run("flash", place / "b", board, "--mounted", "--json")
    second = json.loads(out)
    assert (code, second["step_ms"], second["switched"]) == (0, None, True)
    code, out, _ = run("releases", board)
    assert (code, "not checked yet" in out, "previous" in out) == (0, True, True)
    code, out, _ = run("rollback", board)
    assert (code, f"is in use, not {second['release'][:12]}" in out) == (0, True)
    code, out, err = run("rollback", board, "--quiet")
    assert (code, out, err) == (0, "", "")
    assert run("rollback", board)[0] == 0
    assert run("start", place / "board", "--", "sh", "-c", "exit 7")[0] == 7


@pytest.mark.parametrize(
    "target",
    ["", "x", "ftp://a/b", "dir:", "dir:/x?baud=1", "ssh:host", "ssh://-oProxyCommand=x/y",
     "serial:ttyACM0", "dir:/a\nb"],
)  # fmt: skip
def test_what_is_no_target_is_said(place: Path, target: str) -> None:
    code, _, err = run("flash", place / "a", target)
    assert (code, err.startswith("error: target"), err.count("\n")) == (2, True, 1)


def test_nothing_there(tmp_path: Path) -> None:
    code, _, err = run("rollback", f"dir:{tmp_path}/none")
    assert (code, "expected a board's folder" in err) == (1, True)
    assert not (tmp_path / "none").exists()


def test_the_estimate_names_what_is_there_and_how_long() -> None:
    now = Flashing("sending", 0, 3 * 2**20, 2**20, 7200.0)
    assert estimate(now) == "sending 3.0 MiB (1.0 MiB are there), about 2.0 h"
    assert estimate(Flashing("sending", 0, 2**20, 0, 5.2)) == "sending 1.0 MiB, about 5 s"


def test_what_cannot_be_used_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = f"dir:{place}/other"
    code, out, _ = run("flash", place / "a", board, "--mounted", "--json")
    assert code == 0
    Releases(place / "other").mark_good(json.loads(out)["release"])  # a real check takes long
    (place / "file").touch()
    for arguments, code, said in (
        (("releases", "dir:~nobody-of-that-name/x"), 2, "a user of this machine"),
        (("pull", board, "none"), 2, "there are: none"),
        (("pull", board, "none", "--out", place / "file"), 2, "a new folder, or a run"),
        (("releases", "ssh://board:70000/x"), 2, "a port from 1 to 65535"),
        (("flash", place / "a", "serial:/dev/no-such"), 1, "got no such file or directory"),
        (("start", place / "other", "--", "/no/such/program"), 2, "a program that can be run"),
    ):
        found, _, err = run(*arguments)
        assert (found, said in err, err.count("\n")) == (code, True, 1), err
    mark = json.loads(run("releases", board, "--json")[1])["releases"][0]
    assert mark["failed_starts"] == 0  # a name that was mistyped is not the release's fault
    assert "nothing has been flashed there" in run("releases", f"dir:{place}/empty")[1]
    if shutil.which("ssh"):
        monkeypatch.setenv("S2A_EDGE_SSH_OPTIONS", "-F 'x")
        found, _, err = run("releases", "ssh://board/x")
        assert (found, "close the quote" in err, err.count("\n")) == (2, True, 1)


def test_a_board_with_keys_takes_no_runtime(place: Path) -> None:
    board = place / "signed-only"
    assert run("keygen", place / "me", "-q")[0] == 0
    (board / "trust").mkdir(parents=True)
    (place / "me.pub").rename(board / "trust" / "me.pub")
    code, _, err = run("flash", place / "a", f"dir:{board}", "--with-runtime")
    assert (code, "--with-runtime: expected a board that takes" in err) == (1, True)
    assert not (board / "incoming").exists()


def test_the_agent_answers_whatever_it_is_asked(tmp_path: Path) -> None:
    for request in ("", "[]", "{}", '{"op": "dance"}', '{"op": "offer"}', '{"op": "install"}',
                    '{"op": "held", "blobs": 3}', "\x00" * 9):  # fmt: skip
        done = CliRunner().invoke(app, ["agent", str(tmp_path)], input=request)
        assert json.loads(done.stdout)["ok"] is False
