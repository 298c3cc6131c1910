"""The agent as a process beside a line: one request in, notes and an answer out.

Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

from s2a_edge.link.messages import MAX_MESSAGE_BYTES, Request, decode, encode, failure
from s2a_edge.spec.errors import LinkError

_END_WAIT_S = 2.0


class AgentProcess:
    """A running agent.

    Args:
        command: program and arguments.
        request: what to carry out.

    Attributes:
        is_over: whether it has ended, and its answer was given out.

    Raises:
        LinkError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], request: Request) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise _no_answer(error.strerror or "no program") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._printed = b""
        self._last_words = ""
        self._has_answered = self.is_over = False
        try:
            self._process.stdin.write(encode(request))
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it ended at once; what it printed says why

    def fileno(self) -> int:
        """Descriptor to wait on for reading."""
        return self._stdout.fileno()

    def read(self) -> list[Request]:
        """Notes and the answer, as far as they have come; after an end without one, an error."""
        try:
            data = os.read(self.fileno(), 65_536)
        except BlockingIOError:
            return []
        *lines, self._printed = (self._printed + data).split(b"\n")
        messages = [message for message in map(self._message, lines) if message is not None]
        if not data or len(self._printed) > MAX_MESSAGE_BYTES:
            self.close()
            if not self._has_answered:
                messages.append(failure(_no_answer(self._last_words or "none: it ended")))
        return messages

    def _message(self, line: bytes) -> Request | None:
        try:
            message = decode(line)
        except LinkError:
            self._last_words = line.decode("ascii", "replace")[-200:] or self._last_words
            return None
        self._has_answered = self._has_answered or "ok" in message
        return message

    def close(self) -> None:
        """Let go of it; one that still works (an install) is left to finish."""
        self.is_over = True
        self._stdout.close()
        end_s = time.monotonic() + _END_WAIT_S
        while self._process.poll() is None and time.monotonic() < end_s:
            time.sleep(0.01)


def _no_answer(got: str) -> LinkError:
    return LinkError(
        where="agent",
        expected="an answer",
        got=got,
        todo="check the installation on the board",
    )
