"""The host's end of a serial line: a session, requests, files out and in.

Everything here raises :class:`LineLostError` when the other side does not answer any more; who
calls decides whether to open the line again and go on.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from s2a_edge.link.channel import Channel
from s2a_edge.link.line import (
    BYE,
    HELLO,
    PING,
    PONG,
    RESET,
    WELCOME,
    Clock,
    End,
    Line,
    LineLostError,
)
from s2a_edge.link.messages import OnNote, Request, decode, encode, result
from s2a_edge.link.stream_messages import (
    ANSWER,
    CHUNK,
    CHUNK_BYTES,
    NOTE,
    REQUEST,
    MessageReader,
    pack_chunk,
    pack_message,
    unpack_chunk,
)
from s2a_edge.link.transport import OnBytes, Outgoing

SILENCE_S = 10.0
"""Nothing understood for so long, although asked: the other side is gone."""
_PING_EVERY_S = 1.0
_HELLO_EVERY_S = 0.25
_PENDING_BYTES = 128 * 1024
_SWITCH_S = 0.1


class LineHost:
    """A session with the board at the other end of ``line``.

    Args:
        line: an open line.
        clock: seconds; monotonic.
    """

    def __init__(self, line: Line, clock: Clock | None = None) -> None:
        self.end = End(line) if clock is None else End(line, clock)
        self._clock = self.end.clock
        self._reader = MessageReader()
        self._messages: deque[tuple[int, bytes]] = deque()
        self._pinged_s = 0.0

    def connect(self, wait_s: float) -> bool:
        """Begin a session; whether somebody answered."""
        session = secrets.randbits(32)
        end_s, next_s = self._clock() + wait_s, 0.0
        while self._clock() < end_s:
            if self._clock() >= next_s:
                self.end.send_control(HELLO, session)
                next_s = self._clock() + _HELLO_EVERY_S
            self.end.pump(0.05)
            while self.end.controls:
                if self.end.controls.popleft() == (WELCOME, session):
                    self.end.channel = Channel(session)
                    self._reader = MessageReader()
                    self._messages.clear()
                    return True
        return False

    def call(self, request: Request, on_note: OnNote) -> object:
        """Have a request carried out.

        Raises:
            S2AError: the board's error.
            LineLostError: no answer came.
        """
        self._write(pack_message(REQUEST, encode(request)))
        while True:
            kind, payload = self._next()
            if kind == NOTE:
                on_note(str(decode(payload).get("note"))[:200])
            elif kind == ANSWER:
                return result(decode(payload))

    def put(self, outgoing: Outgoing, file: BinaryIO, on_bytes: OnBytes) -> None:
        """Send a file from ``outgoing.offset`` on.

        Raises:
            S2AError: the board's error.
            LineLostError: the other side is gone; it has some of the file.
        """
        file.seek(outgoing.offset)
        request: Request = {
            "op": "put",
            "blob": [outgoing.blob.sha256, outgoing.blob.size_bytes],
            "offset": outgoing.offset,
        }
        self._write(pack_message(REQUEST, encode(request)))
        marks: deque[tuple[int, int]] = deque()  # end in the stream, bytes of the file
        left_bytes = outgoing.blob.size_bytes - outgoing.offset
        sender = self._channel().sender
        while True:
            while left_bytes and sender.pending_bytes < _PENDING_BYTES:
                data = file.read(min(CHUNK_BYTES, left_bytes))
                if not data:
                    break  # the file became shorter: the board will miss it
                left_bytes -= len(data)
                sender.write(pack_chunk(data))
                marks.append((sender.acked + sender.pending_bytes, len(data)))
            self._turn()
            while marks and marks[0][0] <= sender.acked:
                on_bytes(marks.popleft()[1])
            while self._messages:
                kind, payload = self._messages.popleft()
                if kind == ANSWER:
                    result(decode(payload))
                    on_bytes(sum(size for _, size in marks))
                    return

    def get(self, path: str, offset: int, end: int, write: Callable[[bytes], None]) -> None:
        """Fetch a file from ``offset`` on, up to ``end``.

        Raises:
            S2AError: the board's error.
            LineLostError: the other side is gone.
        """
        request: Request = {"op": "get", "path": path, "offset": offset, "end": end}
        self._write(pack_message(REQUEST, encode(request)))
        while True:
            kind, payload = self._next()
            if kind == CHUNK:
                write(unpack_chunk(payload))
            elif kind == ANSWER:
                result(decode(payload))
                return

    def change_speed(self, old: int, new: int) -> bool:
        """Go to another speed, or stay: whether both sides understand each other at the new one.

        Raises:
            S2AError: the board does not want to.
            LineLostError: they do not even at the old one.
        """
        self.call({"op": "speed", "baud": new}, lambda text: None)
        self._pause(_SWITCH_S)  # the acknowledgement of the answer leaves at the old speed
        self.end.line.drain()
        if self.end.line.set_speed(new) and self._is_answered(1.5):
            return True
        self.end.line.set_speed(old)
        if self._is_answered(2 * SILENCE_S):
            return False
        raise LineLostError("nothing is understood at either speed")

    def leave(self) -> None:
        """Say goodbye, if there is somebody."""
        if self.end.channel is not None:
            for _ in range(3):
                self.end.send_control(BYE, self.end.channel.session)
            try:
                self.end.flush(0.5)
            except LineLostError:
                return

    def _is_answered(self, wait_s: float) -> bool:
        end_s, next_s, token = self._clock() + wait_s, 0.0, secrets.randbits(32)
        while self._clock() < end_s:
            if self._clock() >= next_s:
                self.end.send_control(PING, token)
                next_s = self._clock() + 0.2
            self.end.pump(0.05)
            while self.end.controls:
                if self.end.controls.popleft() == (PONG, token):
                    return True
        return False

    def _pause(self, wait_s: float) -> None:
        end_s = self._clock() + wait_s
        while self._clock() < end_s:
            self.end.pump(0.02)

    def _channel(self) -> Channel:
        if self.end.channel is None:
            raise LineLostError("no session")
        return self.end.channel

    def _write(self, data: bytes) -> None:
        self._messages.clear()
        self._channel().sender.write(data)

    def _next(self) -> tuple[int, bytes]:
        while not self._messages:
            self._turn()
        return self._messages.popleft()

    def _turn(self) -> None:
        """Let the line work for a moment, and see to it that the other side is there."""
        channel = self._channel()
        now_s = self._clock()
        if now_s > self._pinged_s + _PING_EVERY_S:
            self._pinged_s = now_s
            self.end.send_control(PING, channel.session)
        self.end.pump(0.1)
        self._messages.extend(self._reader.feed(channel.receiver.read()))
        while self.end.controls:
            if self.end.controls.popleft() == (RESET, channel.session):
                raise LineLostError("the board was restarted")
        if self._clock() > max(self.end.heard_s, now_s - 1) + SILENCE_S:
            raise LineLostError(f"no answer for {SILENCE_S:.0f} s")
