"""A real OpenSSH server on loopback, with a configuration of its own, for the length of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server",
                 "/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server")  # fmt: skip
# Forwards a connection and cuts it after so many bytes from the host: a pulled cable.
_CUT = """
import os, select, socket, sys
port, left = int(sys.argv[1]), int(sys.argv[2])
board = socket.create_connection(("127.0.0.1", port))
while True:
    ready, _, _ = select.select([0, board], [], [])
    if 0 in ready:
        data = os.read(0, min(65536, left) or 1)
        if not data or not left:
            sys.exit()
        left -= len(data)
        board.sendall(data)
    if board in ready:
        data = board.recv(65536)
        if not data:
            sys.exit()
        os.write(1, data)
"""


@dataclass(frozen=True)
class Sshd:
    """A running server; ``config`` is the client's ``ssh_config`` for the host name ``board``."""

    port: int
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    def write_config(self, *more: str) -> None:
        """(Re)write the client's configuration; ``more`` are further lines."""
        lines = [
            "Host board",
            "HostName 127.0.0.1",
            f"Port {self.port}",
            f"IdentityFile {self.folder}/user_key",
            f"UserKnownHostsFile {self.folder}/known_hosts",
            "GlobalKnownHostsFile /dev/null",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            "BatchMode yes",
            "StrictHostKeyChecking yes",
            "LogLevel ERROR",
            *more,
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def cut_after(self, size_bytes: int | None) -> None:
        """Cut every connection after so many bytes towards the board; None: never."""
        script = self.folder / "cut.py"
        script.write_text(_CUT)
        command = f"ProxyCommand {sys.executable} {script} {self.port} {size_bytes}"
        self.write_config(*([] if size_bytes is None else [command]))


def _keygen(path: Path) -> str:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path.with_suffix(".pub").read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _require_sshd() -> str:
    if _SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's server and client (Debian: openssh-server)")
    if os.geteuid() == 0:
        # Where sshd is never started by the system, its empty folder may be missing.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return _SSHD


def sftp_server() -> str:
    """The program, or what sshd has inside."""
    return next((path for path in _SFTP_SERVERS if Path(path).exists()), "internal-sftp")


@contextmanager
def run_sshd(folder: Path, *settings: str) -> Iterator[Sshd]:
    """Start a server that lets this user in with a key of its own."""
    sshd, server = _require_sshd(), Sshd(_free_port(), folder)
    host_key, user_key = _keygen(folder / "host_key"), _keygen(folder / "user_key")
    (folder / "authorized_keys").write_text(user_key)
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {host_key}")
    lines = [
        "ListenAddress 127.0.0.1",
        f"Port {server.port}",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/pid",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        *(settings or (f"Subsystem sftp {sftp_server()}",)),
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    server.write_config()
    log = (folder / "log").open("wb")
    command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
    with log, subprocess.Popen(command, stderr=log) as process:
        try:
            _wait_until_open(server, process)
            yield server
        finally:
            process.terminate()


def _wait_until_open(server: Sshd, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            pytest.fail(f"sshd ended: {(server.folder / 'log').read_text()[-500:]}")
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail("sshd does not answer")
