"""``ssh://`` against a real server on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2a_edge.link.flash import flash
from s2a_edge.link.open_transport import open_transport
from s2a_edge.link.releases import Releases
from s2a_edge.link.ssh_transport import SshTransport
from s2a_edge.link.transport import Outgoing
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import LinkError, StorageError
from tests.link.contract import ASKED, BLOB, CONTENT, TransportContract, Way, quiet
from tests.link.quick_board import write_wrapper
from tests.link.sshd import Sshd, run_sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(autouse=True)
def options(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    server.write_config()
    monkeypatch.setenv("S2A_EDGE_SSH_OPTIONS", f"-F {server.config}")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return tmp_path / "the board's [folder]"


@pytest.fixture
def target(board: Path, tmp_path: Path) -> str:
    return f"ssh://board{board}?python={write_wrapper(tmp_path / 'python')}"


@pytest.fixture
def way(target: str) -> Way:
    return lambda: open_transport(target)


class TestSshTransport(TransportContract):
    """With whatever is there, rsync before sftp before tar."""

    @pytest.mark.parametrize("name", ["sftp", "tar"])
    def test_the_other_ways_send_the_same(
        self, target: str, board: Path, tmp_path: Path, name: str
    ) -> None:
        with _by(target, name) as transport:
            self.test_files_arrive_also_from_where_they_ended(transport, board, tmp_path)


def _by(target: str, way: str) -> SshTransport:
    if shutil.which(way) is None:
        pytest.skip(f"needs {way}")
    made = open_transport(target)
    assert isinstance(made, SshTransport)
    made.ways = [way]
    return made


def test_without_sftp_on_the_board_a_tar_is_sent(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    bundles: Path,
    board: Path,
) -> None:
    with run_sshd(tmp_path_factory.mktemp("bare"), "# no subsystem") as server:
        monkeypatch.setenv("S2A_EDGE_SSH_OPTIONS", f"-F {server.config}")
        transport = open_transport(target)
        assert isinstance(transport, SshTransport)
        transport.ways = ["sftp", "tar"]
        with transport, Bundle.open(bundles / "a") as bundle:
            assert flash(bundle, transport).switched


def test_a_wrong_host_key_is_said(
    server: Sshd, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = server.folder / "known_hosts"
    right = known.read_text()
    host, kind, _ = right.split()[:3]
    other = (server.folder / "user_key.pub").read_text().split()[1]
    try:
        for content in (f"{host} {kind} {other}\n", ""):
            known.write_text(content)
            with pytest.raises(LinkError, match="expected the host key that is known"):
                open_transport(target)
    finally:
        known.write_text(right)


def test_nobody_there(target: str) -> None:
    with pytest.raises(LinkError, match="expected a board that answers"):
        open_transport(target.replace("ssh://board/", "ssh://127.0.0.1:1/"))
    with pytest.raises(LinkError, match="expected a host of that name"):
        open_transport("ssh://no-such-host.invalid/x")


def test_a_login_that_is_refused(server: Sshd, target: str) -> None:
    server.write_config("User nobody-of-that-name")
    with pytest.raises(LinkError, match="expected a login"):
        open_transport(target)


def test_a_folder_that_cannot_be_written(target: str, bundles: Path) -> None:
    read_only = target.replace(target[len("ssh://board") :].partition("?")[0], "/proc/s2a")
    with (
        open_transport(read_only) as transport,
        Bundle.open(bundles / "a") as bundle,
        pytest.raises(StorageError),
    ):
        flash(bundle, transport)


@pytest.fixture
def small_disk(board: Path) -> Iterator[Path]:
    """A file system of two MiB at the board's folder, where this user may mount one."""
    board.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(board)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield board
    subprocess.run(["umount", str(board)], check=True)


def test_a_full_board_is_noticed_first(target: str, bundles: Path, small_disk: Path) -> None:
    (small_disk / "photos").write_bytes(bytes(1_900_000))
    with (
        open_transport(target) as transport,
        Bundle.open(bundles / "a") as bundle,
        pytest.raises(StorageError, match="free some space"),
    ):
        flash(bundle, transport)
    assert not list((small_disk / "incoming").iterdir())


@pytest.mark.parametrize("name", ["rsync", "sftp", "tar"])
def test_a_board_that_fills_while_files_arrive(
    target: str, small_disk: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "payload").write_bytes(CONTENT)
    with _by(target, name) as transport:
        transport.call({"op": "held", "blobs": ASKED}, quiet)
        with pytest.raises(OSError, match="No space"):
            (small_disk / "photos").write_bytes(bytes(1_900_000))
            (small_disk / "more").write_bytes(bytes(1_900_000))
        with pytest.raises(StorageError, match="free some space"):
            transport.send([Outgoing(BLOB, tmp_path / "payload")], lambda n: None)
        for filled in ("photos", "more"):
            (small_disk / filled).unlink()
        held = transport.call({"op": "held", "blobs": ASKED}, quiet)[BLOB.sha256]
        transport.send([Outgoing(BLOB, tmp_path / "payload", held)], lambda n: None)
        assert transport.call({"op": "admit", "blobs": ASKED}, quiet) == 1


def test_a_shared_connection_of_the_user_is_left_alone(server: Sshd, target: str) -> None:
    # Not in tmp_path: the path of a socket may have 107 characters.
    with tempfile.TemporaryDirectory() as name:
        server.write_config(f"ControlPath {name}/m", "ControlMaster auto", "ControlPersist 3")
        with open_transport(target) as transport:
            assert isinstance(transport, SshTransport)
            assert transport._ssh._master is None
            transport.call({"op": "hello"}, quiet)
            assert Path(name, "m").exists()
        subprocess.run(
            ["ssh", "-F", server.config, "-O", "exit", "board"], check=True, capture_output=True
        )


def test_noise_of_a_login_script_is_not_an_answer(target: str, tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    noise = "echo 'Welcome! {\"ok\": no}'; echo 'rsync: warning' >&2\n"
    lines = wrapper.read_text().splitlines(keepends=True)
    wrapper.write_text("".join([lines[0], noise, *lines[1:]]))
    with open_transport(target) as transport:
        assert transport.call({"op": "hello"}, quiet)["protocol"] == 1


def test_a_bare_board_takes_files_and_then_the_runtime(
    board: Path, bundles: Path, tmp_path: Path
) -> None:
    """Python without s2a-edge; the runtime that is pushed makes it a board."""
    bare = tmp_path / "bare-python"
    libraries = next(p for p in sys.path if p.endswith("site-packages"))
    bare.write_text(
        f'#!/bin/sh\nunset S2A; PYTHONPATH="$PYTHONPATH:{libraries}" '
        f'exec {sys._base_executable} -s "$@"\n'  # type: ignore[attr-defined]  # since 3.7
    )
    bare.chmod(0o755)
    target = f"ssh://board{board}?python={bare}"
    with open_transport(target) as transport, Bundle.open(bundles / "a") as bundle:
        assert transport.call({"op": "held", "blobs": ASKED}, quiet)
        with pytest.raises(LinkError, match="--with-runtime"):
            flash(bundle, transport)
        from s2a_edge.link.bare_package import build_runtime

        done = flash(bundle, transport, runtime=build_runtime())
    assert done.step_ms is not None
    assert Releases(board).current() == done.release
    assert not list((board / "runtime" / "s2a_edge" / "pack").glob("b*"))
    shutil.rmtree(board)
