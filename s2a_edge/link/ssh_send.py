"""Files to a board over ssh: with rsync, with sftp, or as a tar.

Each goes on from what has arrived of a file. Every name on the command lines is a hash.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from s2a_edge.link.heard_process import HeardProcess
from s2a_edge.link.ssh_command import SshCommand
from s2a_edge.link.transport import OnBytes, Outgoing
from s2a_edge.spec.errors import LinkError
from s2a_edge.spec.storage import storage_errors

_CHUNK_BYTES = 65_536
_TAR_BLOCK_BYTES = 512


class SshSender:
    """Sends to one folder of one board.

    Args:
        ssh: the board.
        incoming: the folder, which exists.
    """

    def __init__(self, ssh: SshCommand, incoming: str) -> None:
        self._ssh = ssh
        self.incoming = incoming

    def with_rsync(self, folder: Path, files: Sequence[Outgoing], on_bytes: OnBytes) -> bool:
        """One rsync that goes on where files end on the board."""
        there_bytes = sum(outgoing.offset for outgoing in files)
        command = ["rsync", "--copy-links", "--recursive", "--inplace", "--append"]
        command += ["--protect-args", "--info=progress2", "--no-inc-recursive"]
        to = f"{_bracketed(self._ssh.host)}:{self.incoming}/"
        command += ["-e", self._ssh.shell(), f"{folder}/", to]
        with HeardProcess(command, has_output=True) as process:
            told = 0
            for done_bytes in _rsync_progress(process.stdout):
                # What the board had counts as done there.
                new = min(max(0, done_bytes - there_bytes), _missing(files))
                on_bytes(max(0, new - told))
                told = max(told, new)
            code, stderr = process.end()
        if code != 0:
            raise self._ssh.failure(stderr, code)
        on_bytes(_missing(files) - told)
        return True

    def with_sftp(self, folder: Path, files: Sequence[Outgoing], on_bytes: OnBytes) -> bool:
        """One sftp for each file; False where a side has none."""
        if shutil.which("sftp") is None or set('"\\') & set(self.incoming):  # no way to quote
            return False
        for outgoing in files:
            verb = "reput" if outgoing.offset else "put"
            name = outgoing.blob.sha256
            line = f'{verb} {name} "{self.incoming}/{name}"\n'
            with HeardProcess(self._ssh.sftp(), folder, has_input=True) as process:
                with contextlib.suppress(BrokenPipeError):  # the exit code and stderr say why
                    process.stdin.write(line.encode())
                code, stderr = process.end()
            if code != 0:
                error = self._ssh.failure(stderr, code)
                if isinstance(error, LinkError) and code == 255:
                    self._ssh.run("true")  # a connection that is gone fails here
                    return False  # it is there: what is missing is the board's sftp
                raise error
            on_bytes(outgoing.blob.size_bytes - outgoing.offset)
        return True

    def with_tar(self, folder: Path, files: Sequence[Outgoing], on_bytes: OnBytes) -> bool:
        """What has begun to arrive is continued; all else goes as one tar."""
        for outgoing in files:
            if outgoing.offset:
                self._append(outgoing, on_bytes)
        whole = [outgoing for outgoing in files if not outgoing.offset]
        if whole:
            remote = f"tar -xf - -C {shlex.quote(self.incoming)}"
            self._pour(remote, whole, on_bytes, as_tar=True)
        return True

    def _append(self, outgoing: Outgoing, on_bytes: OnBytes) -> None:
        path = shlex.quote(f"{self.incoming}/{outgoing.blob.sha256}")
        self._pour(f"cat >> {path}", [outgoing], on_bytes, as_tar=False)

    def _pour(
        self, remote: str, files: Sequence[Outgoing], on_bytes: OnBytes, *, as_tar: bool
    ) -> None:
        """Write files into a command on the board."""
        with HeardProcess(self._ssh.ssh(remote), has_input=True) as process:
            with contextlib.suppress(BrokenPipeError):  # the exit code and stderr say why
                for outgoing in files:
                    _write_file(process.stdin, outgoing, on_bytes, as_tar=as_tar)
                process.stdin.write(bytes(2 * _TAR_BLOCK_BYTES) if as_tar else b"")
            code, stderr = process.end()
        if code != 0:
            raise self._ssh.failure(stderr, code)


def _write_file(out: IO[bytes], outgoing: Outgoing, on_bytes: OnBytes, *, as_tar: bool) -> None:
    with storage_errors(outgoing.path, "to read the bundle"):
        file: io.BufferedReader = outgoing.path.open("rb")
    with file:
        file.seek(outgoing.offset)
        if as_tar:
            info = tarfile.TarInfo(outgoing.blob.sha256)
            info.size, info.mode = outgoing.blob.size_bytes, 0o644
            out.write(info.tobuf(tarfile.GNU_FORMAT))
        while chunk := file.read(_CHUNK_BYTES):
            out.write(chunk)
            on_bytes(len(chunk))
        if as_tar:
            out.write(bytes(-outgoing.blob.size_bytes % _TAR_BLOCK_BYTES))


def _rsync_progress(stdout: io.BufferedReader) -> Iterator[int]:
    """The byte counts that rsync prints, ``  1,234,567  45%  1.2MB/s``."""
    rest = b""
    while chunk := stdout.read1(4096):
        *lines, rest = (rest + chunk).replace(b"\n", b"\r").split(b"\r")
        for line in lines:
            words = line.split()
            digits = words[0].replace(b",", b"").replace(b".", b"") if words else b""
            if digits.isdigit():
                yield int(digits)


def _missing(files: Sequence[Outgoing]) -> int:
    return sum(outgoing.blob.size_bytes - outgoing.offset for outgoing in files)


def _bracketed(host: str) -> str:
    """An IPv6 address as rsync wants it."""
    user, at, name = host.rpartition("@")
    return f"{user}{at}[{name}]" if ":" in name else host
