"""A process whose stderr is read all the time and kept in part.

One that nobody listens to stops when its pipe is full; one that says more and more, because whoever
is at the other end wants it, must not fill this machine's memory.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, cast

_KEPT_BYTES = 65_536


class HeardProcess:
    """A running process; a context manager that kills it when the block fails.

    Args:
        command: program and arguments.
        folder: to run it in; None: this one.
        has_input: whether ``stdin`` is written to; else it is empty.
        has_output: whether ``stdout`` is read; else it is thrown away.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path | None = None,
        *,
        has_input: bool = False,
        has_output: bool = False,
    ) -> None:
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            stdin=pipe if has_input else nothing,
            stdout=pipe if has_output else nothing,
            stderr=pipe,
            cwd=folder,
        )
        self._last = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def stdin(self) -> IO[bytes]:
        """To write to."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> io.BufferedReader:
        """To read from."""
        return cast(io.BufferedReader, self._process.stdout)

    def end(self) -> tuple[int, bytes]:
        """Wait for its end: exit code, and the last of what it said on stderr."""
        self._close_input()
        self._listener.join()
        return self._process.wait(), bytes(self._last)

    def _listen(self) -> None:
        stderr = cast(io.BufferedReader, self._process.stderr)
        while data := stderr.read1(4096):
            self._last += data
            del self._last[:-_KEPT_BYTES]

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # its exit code says why
                self._process.stdin.close()

    def __enter__(self) -> HeardProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.end()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
