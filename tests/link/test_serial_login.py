"""A bare board: a login shell on the line, Python without s2a-edge behind it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s2a_edge.link import serial_transport
from s2a_edge.link.bare_package import build_runtime
from s2a_edge.link.blobs import Blob
from s2a_edge.link.flash import flash
from s2a_edge.link.open_transport import open_transport
from s2a_edge.link.transport import Outgoing
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import LinkError
from tests.link.contract import quiet
from tests.link.faulty_line import Faults, FaultyLine

BASE = Path(os.path.realpath(sys.executable)).parent  # no virtual environment: no s2a-edge
LOGIN = r"""
printf 'Ubuntu 22.04.4 LTS tegra ttyGS0\n\n'
while :; do
  printf 'tegra login: '; read user
  stty -echo; printf 'Password: '; read password; stty echo; printf '\n'
  [ "$user $password" = "nvidia secret" ] && break
  printf 'Login incorrect\n'
done
"""


@contextmanager
def shell(line: FaultyLine, home: Path, login: str = "", libraries: str = "") -> Iterator[None]:
    """A shell as getty would start it, on the board's end of the line."""
    if shutil.which("setsid") is None:
        pytest.skip("needs setsid (util-linux)")
    home.mkdir()
    script = f"stty sane; {login}\nPS1='nvidia@tegra:~$ ' exec sh -i"
    environment = {"PATH": f"{BASE}:/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home)}
    environment |= {"PYTHONPATH": libraries} if libraries else {}
    with (
        line.board.open("r+b", buffering=0) as terminal,
        subprocess.Popen(
            ["setsid", "--ctty", "sh", "-c", script],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            cwd=home,
        ) as process,
    ):
        try:
            yield
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the shell is there: no need to wait long for an answer before turning to it."""
    monkeypatch.setattr(serial_transport, "_ANSWER_S", 0.4)


@pytest.mark.parametrize("faults", [Faults(messages=0.0001), Faults(damaged=0.0002)])
def test_the_program_is_pushed_and_takes_files(tmp_path: Path, faults: Faults) -> None:
    content = bytes(range(256)) * 100
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    (tmp_path / "payload").write_bytes(content)
    asked = [[blob.sha256, blob.size_bytes]]
    with FaultyLine(tmp_path, faults, seed=1) as line, shell(line, tmp_path / "home"):
        with open_transport(f"serial:{line.host}") as transport:
            assert transport.call({"op": "held", "blobs": asked}, quiet) == {blob.sha256: 0}
            transport.send([Outgoing(blob, tmp_path / "payload")], lambda n: None)
            assert transport.call({"op": "admit", "blobs": asked}, quiet) == 1
            with pytest.raises(LinkError, match="--with-runtime"):
                transport.call({"op": "install"}, quiet)
        board = tmp_path / "home" / "s2a-edge"
        assert (board / "blobs" / blob.sha256).read_bytes() == content
        # The shell is back, the program is gone, and can come again.
        with open_transport(f"serial:{line.host}") as transport:
            assert transport.call({"op": "hello"}, quiet)["protocol"] == 1
            assert len(list((tmp_path / "home").glob("s2a-edge-*.pyz"))) == 1


def test_a_login_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", lambda prompt: "secret")
    with FaultyLine(tmp_path) as line, shell(line, tmp_path / "home", LOGIN):
        target = f"serial:{line.host}?user=nvidia&root={tmp_path}/board"
        with open_transport(target) as transport:
            assert transport.call({"op": "hello"}, quiet)["free_bytes"] > 0


def test_a_shell_without_python_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2a_edge.link.serial_login._ATTEMPTS", 1)
    (tmp_path / "bin").mkdir()
    for name in ("sh", "stty"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    with (
        FaultyLine(tmp_path) as line,
        shell(line, tmp_path / "home", f"PATH={tmp_path}/bin"),
        pytest.raises(LinkError, match="did not arrive whole"),
    ):
        open_transport(f"serial:{line.host}")


@pytest.mark.faults_long
def test_a_bare_board_becomes_one_that_trains(tmp_path: Path, bundles: Path) -> None:
    """Nothing on the board but Python and what s2a-edge depends on, behind a login shell."""
    libraries = tmp_path / "libraries"  # without the s2a-edge that may be installed beside them
    libraries.mkdir()
    here = Path(next(p for p in sys.path if p.endswith("site-packages")))
    for path in here.iterdir():
        if "s2a_edge" not in path.name and path.suffix != ".pth":
            (libraries / path.name).symlink_to(path)
    with (
        FaultyLine(tmp_path, Faults(damaged=0.00002), seed=2) as line,
        shell(line, tmp_path / "home", libraries=str(libraries)),
        open_transport(f"serial:{line.host}") as transport,
        Bundle.open(bundles / "a") as bundle,
    ):
        done = flash(bundle, transport, runtime=build_runtime())
    assert done.step_ms is not None
    Bundle.open(tmp_path / "home" / "s2a-edge" / "current").close()
