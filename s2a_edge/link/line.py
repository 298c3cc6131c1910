"""A serial line as a file descriptor, and what both ends do with it: send and take frames.

Standard library only.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import termios
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from s2a_edge.link.channel import Channel
from s2a_edge.link.channel_frames import session_of
from s2a_edge.link.framing import Deframer, encode_frame

VERSION = 1
HELLO, WELCOME, RESET, PING, PONG, BYE = 0x01, 0x02, 0x05, 0x06, 0x07, 0x08
_CONTROL = struct.Struct("<BBI")  # type, version, session or token
_ROOM_BYTES = 1024  # data frames wait until no more than this waits for the line
_MOST_WAITING_BYTES = 65_536  # for a line that takes nothing
_READ_BYTES = 65_536
Clock = Callable[[], float]


class LineLostError(Exception):
    """The line is gone, or the other side does not answer any more; never leaves this package."""


class Line(Protocol):
    """What an end needs of a line."""

    def fileno(self) -> int:
        """Descriptor to wait on for reading."""

    def read(self) -> bytes:
        """What is there; empty where the line has ended."""

    def write(self, data: bytes) -> int:
        """Write what goes without waiting; the number of bytes."""

    def set_speed(self, baud: int) -> bool:
        """Change the speed of both directions, whether that is possible."""

    def drain(self) -> None:
        """Wait until what was written has left."""


class FdLine:
    """A line that is one open descriptor, or two: a terminal's stdin and stdout.

    Args:
        read_fd: to read from.
        write_fd: to write to.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._saved: list[Any] | None = None
        os.set_blocking(write_fd, False)
        if os.isatty(read_fd):
            self._saved = termios.tcgetattr(read_fd)
            make_raw(read_fd)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._read_fd

    def read(self) -> bytes:
        """What is there; empty where the line has ended."""
        return os.read(self._read_fd, _READ_BYTES)

    def write(self, data: bytes) -> int:
        """Write what goes without waiting."""
        try:
            return os.write(self._write_fd, data)
        except BlockingIOError:
            select.select([], [self._write_fd], [], 0.05)
            return 0

    def set_speed(self, baud: int) -> bool:
        """Change the speed, if there is a terminal that knows it."""
        return set_terminal_speed(self._read_fd, baud)

    def drain(self) -> None:
        """Wait until what was written has left."""
        if os.isatty(self._write_fd):
            termios.tcdrain(self._write_fd)

    def restore(self) -> None:
        """Make the terminal what it was."""
        os.set_blocking(self._write_fd, True)
        if self._saved is not None:
            termios.tcsetattr(self._read_fd, termios.TCSANOW, self._saved)


def make_raw(fd: int) -> None:
    """Every byte as it is, both ways: no echo, no signals, no flow control, eight bits."""
    i, o, c, line, ispeed, ospeed, cc = termios.tcgetattr(fd)
    i = 0
    o &= ~termios.OPOST
    c = (c & ~(termios.CSIZE | termios.PARENB)) | termios.CS8 | termios.CREAD | termios.CLOCAL
    line = 0
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, [i, o, c, line, ispeed, ospeed, cc])


def set_terminal_speed(fd: int, baud: int) -> bool:
    """Change a terminal's speed; False where it does not know that speed."""
    speed = getattr(termios, f"B{baud}", None)
    if speed is None or not os.isatty(fd):
        return False
    i, o, c, line, _, _, cc = termios.tcgetattr(fd)
    termios.tcsetattr(fd, termios.TCSADRAIN, [i, o, c, line, speed, speed, cc])
    return True


def control_frame(kind: int, number: int) -> bytes:
    """Content of a HELLO, WELCOME, RESET, PING, PONG or BYE frame."""
    return _CONTROL.pack(kind, VERSION, number)


def read_control(content: bytes) -> tuple[int, int] | None:
    """Type and number of a control frame of this version; None for anything else."""
    if len(content) != _CONTROL.size:
        return None
    kind, version, number = _CONTROL.unpack(content)
    if version != VERSION or kind not in (HELLO, WELCOME, RESET, PING, PONG, BYE):
        return None
    return kind, number


class End:
    """One end of a line: frames in and out, and the channel of the session.

    Args:
        line: an open line.
        clock: seconds; monotonic.

    Attributes:
        channel: of the current session; None before there is one.
        controls: control frames that came and were not looked at yet.
        strangers: sessions of channel frames that are not ours.
        heard_s: when the last whole frame came.
        noise: bytes between frames, the last few: what a console says.
    """

    def __init__(self, line: Line, clock: Clock = time.monotonic) -> None:
        self.line, self.clock = line, clock
        self.channel: Channel | None = None
        self.controls: deque[tuple[int, int]] = deque(maxlen=64)
        self.strangers: deque[int] = deque(maxlen=4)
        self.heard_s = clock()
        self.noise = bytearray()
        self._deframer = Deframer()
        self._out = bytearray()

    def send_control(self, kind: int, number: int) -> None:
        """Send a control frame; it is not repeated, and not sent where too much waits already."""
        if len(self._out) < _MOST_WAITING_BYTES:
            self._out += encode_frame(control_frame(kind, number))

    def pump(self, wait_s: float, also: Sequence[int] = ()) -> list[int]:
        """Send what may go, take what comes; at most ``wait_s`` long.

        Args:
            wait_s: how long to wait for something to happen.
            also: further descriptors to wait on.

        Returns:
            Those of ``also`` that can be read.

        Raises:
            LineLostError: the line has ended.
        """
        try:
            return self._pump(wait_s, also)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBADF, errno.EPIPE):
                raise LineLostError(error.strerror) from error
            raise

    def flush(self, limit_s: float = 2.0) -> None:
        """Have everything sent that does not wait for an answer."""
        end_s = self.clock() + limit_s
        while self._out and self.clock() < end_s:
            self.pump(0.01)
        self.line.drain()

    def _pump(self, wait_s: float, also: Sequence[int]) -> list[int]:
        self._fill()
        fd = self.line.fileno()
        waits = [wait_s]
        deadline_s = self.channel.sender.deadline_s() if self.channel else None
        # While the line takes nothing, what is overdue cannot be repeated either: just wait.
        if deadline_s is not None and len(self._out) < _ROOM_BYTES:
            waits.append(max(0.0, deadline_s - self.clock()))
        # Writing goes to the same descriptor on a device; a pair says so when it is written to.
        writable = [fd] if self._out else []
        readable, can_write, _ = select.select([fd, *also], writable, [], min(waits))
        if fd in readable:
            data = self.line.read()
            if not data:
                raise LineLostError("the line has ended")
            self._take(data)
            self._fill()
        if can_write and self._out:
            written = self.line.write(bytes(self._out))
            del self._out[:written]
        return [other for other in also if other in readable]

    def _take(self, data: bytes) -> None:
        self.noise += data
        del self.noise[:-4096]
        for content in self._deframer.feed(data):
            self.heard_s = self.clock()
            control = read_control(content)
            if control is not None:
                self.controls.append(control)
                continue
            session = session_of(content)
            is_ours = self.channel is not None and self.channel.receive(content, self.heard_s)
            if session is not None and not is_ours:
                self.strangers.append(session)

    def _fill(self) -> None:
        while self.channel is not None and len(self._out) < _MOST_WAITING_BYTES:
            may_send_data = len(self._out) < _ROOM_BYTES
            content = self.channel.poll(self.clock(), may_send_data=may_send_data)
            if content is None:
                return
            self._out += encode_frame(content)
