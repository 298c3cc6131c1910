"""The board's end of a serial line: takes files, gives files, has requests carried out.

A request is answered by a process of its own, the agent, so that the line goes on while an install
takes minutes, and so that the same code serves a board with s2a-edge and one without. Only the
bytes of files are handled here. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from s2a_edge.link.agent_process import AgentProcess
from s2a_edge.link.blobs import Blob, BlobStore, read_blob
from s2a_edge.link.channel import Channel
from s2a_edge.link.given_file import open_below
from s2a_edge.link.line import BYE, HELLO, PING, PONG, RESET, WELCOME, End, Line
from s2a_edge.link.messages import (
    Request,
    bad_request,
    decode,
    encode,
    failure,
    success,
)
from s2a_edge.link.offered import require_offered
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
from s2a_edge.spec.errors import LinkError, S2AError, UsageError

SPEED_TRIAL_S = 3.0
"""Nothing understood for so long at a new speed: back to the one before."""
SESSION_S = 60.0
"""Nothing understood for so long: the host is gone, and nothing more is sent to it."""
_ANSWER_WAIT_S = 1.0
_PENDING_BYTES = 256 * 1024
AgentCommand = Callable[[Path], Sequence[str]]


class LineServer:
    """Serves one line for one board.

    Args:
        line: an open line.
        root: the board's folder.
        agent: the command line that answers one request on stdin.
        base_baud: the speed of the line now, to come back to; None: not known.
    """

    def __init__(
        self, line: Line, root: Path, agent: AgentCommand, base_baud: int | None = None
    ) -> None:
        self.end = End(line)
        self.root = root
        self._command = agent
        self._base_baud = self._baud = base_baud
        self._next_baud: tuple[int, float] | None = None
        self._reader = MessageReader()
        self._put: tuple[Blob, int] | None = None
        self._get: BinaryIO | None = None
        self._get_end = 0
        self._agent: AgentProcess | None = None
        self._agent_session = -1
        self._waiting: Request | None = None
        self._is_over = False

    def serve(self, idle_s: float | None = None) -> None:
        """Serve until the host says goodbye, or nothing came for ``idle_s`` (None: for ever).

        Raises:
            LineLostError: the line has ended.
        """
        started_s = self.end.clock()
        try:
            while not self._is_over:
                self.step(0.2)
                quiet_s = self.end.clock() - max(self.end.heard_s, started_s)
                if idle_s is not None and quiet_s > idle_s and self._agent is None:
                    return
            self.end.flush()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of files and of the agent; the line stays open."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        self._forget_files()

    def step(self, wait_s: float) -> None:
        """One turn: whatever came is dealt with."""
        if self.end.pump(wait_s, [self._agent.fileno()] if self._agent else []):
            self._read_agent()
        self._answer_controls()
        if self.end.channel and self.end.clock() > self.end.heard_s + SESSION_S:
            self._leave_session()  # a host that is there asks every second
        channel = self.end.channel
        # Who asks and asks, and takes no answer, is not listened to for the time.
        if channel is not None and channel.sender.pending_bytes < 2 * _PENDING_BYTES:
            data = channel.receiver.read()
            try:
                for kind, payload in self._reader.feed(data):
                    self._take(kind, payload)
            except LinkError as error:
                self._refuse(error)
                self._leave_session()
        self._give()
        self._mind_speed()

    def _answer_controls(self) -> None:
        while self.end.controls:
            kind, number = self.end.controls.popleft()
            if kind == HELLO:
                if self.end.channel is None or self.end.channel.session != number:
                    self._begin_session(number)
                self.end.send_control(WELCOME, number)
            elif kind == PING:
                self.end.send_control(PONG, number)
            elif kind == BYE and self.end.channel and self.end.channel.session == number:
                self._leave_session()
                self._is_over = True
        while self.end.strangers:
            self.end.send_control(RESET, self.end.strangers.popleft())

    def _begin_session(self, number: int) -> None:
        self._leave_session()
        self._is_over = False
        self.end.channel = Channel(number)
        self._reader = MessageReader()

    def _leave_session(self) -> None:
        self.end.channel = None
        self._forget_files()
        self._waiting = None

    def _forget_files(self) -> None:
        self._put = None
        if self._get is not None:
            self._get.close()
            self._get = None

    def _take(self, kind: int, payload: bytes) -> None:
        try:
            if kind == REQUEST:
                self._begin(decode(payload))
            elif kind == CHUNK and self._put is not None:
                self._store(unpack_chunk(payload))
        except S2AError as error:
            self._refuse(error)

    def _refuse(self, error: S2AError) -> None:
        self._put = None
        self._say(ANSWER, encode(failure(error)))

    def _begin(self, request: Request) -> None:
        self._forget_files()
        operation = request.get("op")
        if operation == "put":
            self._begin_put(request)
        elif operation == "get":
            self._begin_get(request)
        elif operation == "speed":
            self._begin_speed(request)
        elif self._agent is not None:
            self._waiting = request  # of a session that broke off; its end is awaited
        else:
            self._start(request)

    def _begin_put(self, request: Request) -> None:
        blob, offset = read_blob(request.get("blob")), request.get("offset")
        require_offered(self.root, [blob])
        store = BlobStore(self.root)
        store.require_space([blob])
        if offset != store.held_bytes(blob):
            raise LinkError(
                where=f"blob {blob.sha256[:12]}",
                expected=f"offset {store.held_bytes(blob)}",
                got=ascii(offset)[:20],
                todo="flash again: it goes on from what is there",
            )
        self._put = (blob, offset)
        self._end_put()

    def _store(self, data: bytes) -> None:
        assert self._put is not None
        blob, offset = self._put
        self._put = (blob, BlobStore(self.root).append(blob, offset, data))
        self._end_put()

    def _end_put(self) -> None:
        if self._put is not None and self._put[1] == self._put[0].size_bytes:
            self._say(ANSWER, encode(success(self._put[1])))
            self._put = None

    def _begin_get(self, request: Request) -> None:
        offset, self._get_end = _offset(request.get("offset")), _offset(request.get("end"))
        self._get = open_below(self.root, str(request.get("path")))
        self._get.seek(offset)

    def _give(self) -> None:
        """Send more of a file that is asked for, as the line takes it."""
        while self._get is not None and self.end.channel is not None:
            if self.end.channel.sender.pending_bytes > _PENDING_BYTES:
                return
            data = self._read_more(self._get)
            if data:
                self.end.channel.sender.write(pack_chunk(data))
            else:
                self._forget_files()
                self._say(ANSWER, encode(success(None)))

    def _read_more(self, file: BinaryIO) -> bytes:
        """The next piece of a file that is asked for; nothing more where it cannot be read."""
        left_bytes = self._get_end - file.tell()
        try:
            return file.read(max(0, min(CHUNK_BYTES, left_bytes)))
        except OSError:
            return b""  # a worn card: the host misses bytes, and says so

    def _begin_speed(self, request: Request) -> None:
        baud = request.get("baud")
        if type(baud) is not int or not 1200 <= baud <= 20_000_000:
            raise bad_request(f"speed {baud!a}")
        if self._base_baud is None:
            raise UsageError(
                where="speed",
                expected="a line whose speed is known",
                got="another",
                todo="go on as it is",
            )
        self._say(ANSWER, encode(success(baud)))
        self._next_baud = (baud, self.end.clock() + _ANSWER_WAIT_S)

    def _mind_speed(self) -> None:
        """Change the speed once the answer has left; change back if nothing is understood."""
        now_s = self.end.clock()
        if self._next_baud is not None and self.end.channel is not None:
            baud, latest_s = self._next_baud
            if self.end.channel.sender.pending_bytes and now_s < latest_s:
                return
            self._next_baud = None
            self._set_speed(baud)
        elif self._baud != self._base_baud and now_s > self.end.heard_s + SPEED_TRIAL_S:
            self._set_speed(self._base_baud)

    def _set_speed(self, baud: int | None) -> None:
        self.end.flush(0.2)
        if baud is not None and self.end.line.set_speed(baud):
            self._baud = baud
            self.end.heard_s = self.end.clock()

    def _say(self, kind: int, line: bytes) -> None:
        if self.end.channel is not None:
            self.end.channel.sender.write(pack_message(kind, line))

    def _read_agent(self) -> None:
        assert self._agent is not None
        for message in self._agent.read():
            # What a request of a session that broke off led to is not the next one's answer.
            if self.end.channel and self.end.channel.session == self._agent_session:
                self._say(NOTE if "note" in message else ANSWER, encode(message))
        if self._agent.is_over:
            self._agent = None
            if self._waiting is not None:
                request, self._waiting = self._waiting, None
                self._start(request)

    def _start(self, request: Request) -> None:
        assert self.end.channel is not None
        self._agent = AgentProcess(self._command(self.root), request)
        self._agent_session = self.end.channel.session


def _offset(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise bad_request(f"offset {value!a}")
    return value
