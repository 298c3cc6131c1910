"""The system's OpenSSH as a process: its options, its connection, its failures in our words.

The user's configuration, keys, agent and known hosts are ssh's business. Where the configuration
shares no connection (``ControlMaster``), one is opened for the time of the flash, so that a
password is asked for once; where it does, that is left alone. ``S2A_EDGE_SSH_OPTIONS`` holds
further options for ssh and sftp, such as ``-F FILE``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from s2a_edge.link.heard_process import HeardProcess
from s2a_edge.link.target import Target
from s2a_edge.spec.errors import LinkError, S2AError, StorageError, UsageError

CONNECT_TIMEOUT_S = 20
_MASTER_WAIT_S = 120.0  # a password may be asked for
_MOST_SOCKET_CHARS = 80  # of 104 to 108; ssh adds some of its own
_MOST_SAID_BYTES = 2**20
_FAILURES = (
    # What ssh says, what was expected, what to do.
    (
        r"Host key verification failed|IDENTIFICATION HAS CHANGED|No .* host key is known",
        "the host key that is known",
        "make sure that this is your board, then `ssh-keygen -R` its name and connect with ssh",
    ),
    (
        r"Permission denied \(",
        "a login",
        "load your key into the agent, or copy it there with ssh-copy-id",
    ),
    (r"Could not resolve hostname", "a host of that name", "check the name, and the network"),
    (
        r"Connection refused|No route to host|timed out|Network is unreachable",
        "a board that answers",
        "check that it is on and its ssh server runs",
    ),
    (
        r"closed by|Connection reset|Broken pipe|[Cc]onnection unexpectedly closed|lost connection",
        "a connection that lasts",
        "try again: a flash goes on from what has arrived",
    ),
)
_STORAGE = (
    # sftp's server has no word for a full disk but "Failure".
    (
        r"No space left on device|Disk quota exceeded|write remote .*: Failure",
        "free some space on the board",
    ),
    (r"Read-only file system", "remount it, or give another path"),
    (r"[Pp]ermission denied", "give a path that this user may write"),
)


class SshCommand:
    """Command lines for one host, and the connection that they share.

    Args:
        target: an ssh target.

    Raises:
        LinkError: there is no ssh client here, or the host cannot be reached.
    """

    def __init__(self, target: Target) -> None:
        if shutil.which("ssh") is None:
            raise LinkError(
                where=target.text,
                expected="the ssh client of this system",
                got="none",
                todo="install OpenSSH",
            )
        self.where = target.text
        self.host = f"{target.user}@{target.host}" if target.user else target.host
        self.options = _further_options()
        self._port = target.port
        self._folder: Path | None = None
        self._master: subprocess.Popen[bytes] | None = None
        if not self._is_shared():
            self._connect()

    def ssh(self, remote: str) -> list[str]:
        """The command line that has the board's shell run ``remote``."""
        port = [] if self._port is None else ["-p", str(self._port)]
        return ["ssh", "-T", *self.options, *port, "--", self.host, remote]

    def sftp(self) -> list[str]:
        """The command line of sftp, which reads its commands from stdin."""
        port = [] if self._port is None else ["-P", str(self._port)]
        return ["sftp", "-q", *self.options, *port, "-b", "-", "--", self.host]

    def shell(self) -> str:
        """What rsync runs in place of ssh."""
        port = [] if self._port is None else ["-p", str(self._port)]
        return shlex.join(["ssh", "-T", *self.options, *port])

    def run(self, remote: str, content: bytes = b"") -> bytes:
        """What ``remote`` prints on the board.

        Raises:
            S2AError: it failed; see :meth:`failure`.
        """
        with HeardProcess(self.ssh(remote), has_input=True, has_output=True) as process:
            with contextlib.suppress(BrokenPipeError):  # its exit code says why
                process.stdin.write(content)
                process.stdin.close()
            said = process.stdout.read(_MOST_SAID_BYTES)
            process.stdout.close()
            code, stderr = process.end()
        if code != 0:
            raise self.failure(stderr, code)
        return said

    def failure(self, stderr: bytes, code: int) -> S2AError:
        """The error of a process that ended with exit code ``code``, from what it said."""
        text = stderr.decode("utf-8", "replace")
        for pattern, expected, todo in _FAILURES:
            if re.search(pattern, text):
                return LinkError(
                    where=self.where, expected=expected, got=_last_line(text, pattern), todo=todo
                )
        for pattern, todo in _STORAGE:
            if re.search(pattern, text):
                return StorageError(
                    where=self.where,
                    expected="a folder on the board that can be written",
                    got=_last_line(text, pattern),
                    todo=todo,
                )
        if code == 255:  # ssh's own exit code for whatever went wrong with the connection
            return LinkError(
                where=self.where,
                expected="a connection",
                got=_last_line(text) or "one that ended",
                todo="see that `ssh` to it works, then try again",
            )
        return LinkError(
            where=self.where,
            expected="a command that works on the board",
            got=_last_line(text) or f"exit code {code}",
            todo="check the installation on the board",
        )

    def close(self) -> None:
        """End the connection, if it is ours."""
        if self._master is not None:
            self._master.terminate()
            try:
                self._master.wait(2)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
            self._master = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _is_shared(self) -> bool:
        """Whether the user's configuration shares connections already."""
        port = [] if self._port is None else ["-p", str(self._port)]
        command = ["ssh", "-G", *self.options, *port, "--", self.host]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise self.failure(done.stderr.encode(), done.returncode)
        settings = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        if settings.get("connecttimeout", "none") in ("none", "0"):
            self.options += ["-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
        return settings.get("controlpath", "none") != "none"

    def _connect(self) -> None:
        """Open the connection that all further commands share."""
        self._folder = Path(tempfile.mkdtemp(prefix="s2a-"))
        if len(str(self._folder)) > _MOST_SOCKET_CHARS:
            self._folder.rmdir()
            self._folder = Path(tempfile.mkdtemp(prefix="s2a-", dir="/tmp"))
        socket = self._folder / "ssh"
        port = [] if self._port is None else ["-p", str(self._port)]
        # Kept alive, so that a pulled cable is noticed within a minute.
        alive = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]
        master = ["-M", "-N", "-o", f"ControlPath={socket}", *alive]
        log = self._folder / "log"
        with log.open("wb") as stderr:
            self._master = subprocess.Popen(
                ["ssh", "-T", *self.options, *master, *port, "--", self.host],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        end_s = time.monotonic() + _MASTER_WAIT_S
        while not socket.exists():
            code = self._master.poll()
            if code is not None or time.monotonic() > end_s:
                said = log.read_bytes()
                self.close()
                raise self.failure(said, 255 if code is None else code)
            time.sleep(0.02)
        self.options += ["-o", f"ControlPath={socket}", "-o", "ControlMaster=no"]


def _further_options() -> list[str]:
    """What the user adds to every ssh and sftp."""
    text = os.environ.get("S2A_EDGE_SSH_OPTIONS", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            where="S2A_EDGE_SSH_OPTIONS",
            expected="options as a shell splits them",
            got=f"{text[:80]!a}: {str(error).lower()}",
            todo="close the quote",
        ) from error


def _last_line(text: str, pattern: str = "") -> str:
    """The last line that says something about it."""
    lines = [line.strip(" @\r") for line in text.splitlines() if re.search(pattern, line)]
    return ascii(next((line for line in reversed(lines) if line), ""))[1:-1][:200]
