"""``serial:/dev/ttyACM0``: a board on a serial line, with whatever is on it.

The other end is ``s2a-edge serve-serial``, or a login shell into which a program of the standard
library is pushed. A line that breaks is opened again and the work goes on from what has arrived,
until nobody has answered for ``PATIENCE_S``. docs/serial-protocol.md describes what is on the wire.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from s2a_edge.link.blobs import Blob
from s2a_edge.link.line import LineLostError
from s2a_edge.link.line_host import LineHost
from s2a_edge.link.messages import OnNote, Request
from s2a_edge.link.serial_device import SerialDevice
from s2a_edge.link.serial_login import push_server
from s2a_edge.link.target import Target
from s2a_edge.link.transport import Incoming, OnBytes, Outgoing, Transport
from s2a_edge.spec.errors import LinkError, S2AError, UsageError
from s2a_edge.spec.storage import storage_errors

BASE_BAUD = 115_200
PATIENCE_S = 60.0
_ANSWER_S = 1.5
_PAYLOAD_SHARE = 0.95  # of the line's bytes, frames and acknowledgements taken off
_BITS_PER_BYTE = 10  # start, eight, stop
_NOT_TWICE = ("rollback",)

T = TypeVar("T")


class SerialTransport(Transport):
    """A board on a serial line.

    Args:
        target: a serial target.
        patience_s: how long to wait for a board that does not answer any more.
        may_push: whether to log in to a bare board and start a program there.

    Raises:
        LinkError: there is no such device, or nobody answers.
    """

    def __init__(
        self, target: Target, patience_s: float = PATIENCE_S, *, may_push: bool = True
    ) -> None:
        self.target = target.text
        self._target = target
        self._base = _speed(target, "base", BASE_BAUD)
        self._baud = _speed(target, "baud", self._base)
        self._patience_s = patience_s
        self._may_push = may_push
        self._now_baud = self._base
        self._device: SerialDevice | None = None
        self._host: LineHost | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def call(self, request: Request, on_note: OnNote) -> Any:
        """One message each way."""
        if request.get("op") in _NOT_TWICE:
            try:
                return self._connected().call(request, on_note)
            except LineLostError as error:
                raise self._lost(
                    str(error), "look at `s2a-edge releases` before trying again"
                ) from error
        return self._lasting(lambda host: host.call(request, on_note))

    def send(self, files: Sequence[Outgoing], on_bytes: OnBytes) -> None:
        """One file after the other; after a break from where the board says that it is."""
        for outgoing in files:
            self._send_one(outgoing, on_bytes)

    def _send_one(self, outgoing: Outgoing, on_bytes: OnBytes) -> None:
        blob, told_bytes = outgoing.blob, outgoing.offset
        has_tried = False

        def tell(more_bytes: int) -> None:
            nonlocal told_bytes
            told_bytes += more_bytes
            on_bytes(more_bytes)

        def put(host: LineHost) -> None:
            nonlocal has_tried
            held_bytes = self._held_bytes(host, blob) if has_tried else outgoing.offset
            has_tried = True
            tell(held_bytes - told_bytes)
            if held_bytes < blob.size_bytes:
                host.put(Outgoing(blob, outgoing.path, held_bytes), file, tell)

        with storage_errors(outgoing.path, "to read the bundle"):
            file = outgoing.path.open("rb")
        with file:
            self._lasting(put)

    def _held_bytes(self, host: LineHost, blob: Blob) -> int:
        """How much of a file the board has, after a break."""
        asked: Request = {"op": "held", "blobs": [[blob.sha256, blob.size_bytes]]}
        answer = host.call(asked, lambda text: None)
        held_bytes = answer.get(blob.sha256) if isinstance(answer, dict) else None
        if type(held_bytes) is not int or not 0 <= held_bytes <= blob.size_bytes:
            raise self._lost(f"{answer!a}"[:80], "use the same version on both sides")
        return held_bytes

    def fetch(self, files: Sequence[Incoming], on_bytes: OnBytes) -> None:
        """One file after the other; after a break from where it ended here."""
        for incoming in files:
            self._fetch_one(incoming, on_bytes)

    def _fetch_one(self, incoming: Incoming, on_bytes: OnBytes) -> None:
        with (
            storage_errors(incoming.target, "to write what comes from the board"),
            incoming.target.open("wb") as out,
        ):

            def write(data: bytes) -> None:
                incoming.require_room(out.tell() + len(data))
                out.write(data)
                on_bytes(len(data))

            end = incoming.blob.size_bytes
            self._lasting(lambda host: host.get(incoming.path, out.tell(), end, write))

    def bytes_per_s(self) -> float | None:
        """What the speed of the line allows; USB devices are faster than they say."""
        return self._now_baud / _BITS_PER_BYTE * _PAYLOAD_SHARE

    def close(self) -> None:
        """Say goodbye and let go of the device."""
        if self._host is not None:
            with contextlib.suppress(OSError):  # the device is gone, and with it the board
                self._host.leave()
            self._host = None
        if self._device is not None:
            self._device.close()
            self._device = None

    def _lasting(self, work: Callable[[LineHost], T]) -> T:
        """Do something that may be done again from the start after the line broke."""
        while True:
            try:
                return work(self._connected())
            except LineLostError as error:
                self.notify(f"line lost ({error}); waiting for the board")
                self._reopen(str(error))

    def _reopen(self, reason: str) -> None:
        end_s = time.monotonic() + self._patience_s
        if self._device is not None:
            self._device.close()
        self._device = self._host = None
        while True:
            try:
                self._open()
                return
            except (LinkError, LineLostError) as error:
                self._drop()
                if time.monotonic() > end_s:
                    raise self._lost(reason, "flash again: it goes on from there") from error
                time.sleep(0.2)

    def _open(self) -> None:
        """Open the device and begin a session, at whatever speed the board has now."""
        path = self._target.host
        self._device = SerialDevice(path, self._base)
        self._host = LineHost(self._device)
        self._now_baud = self._base
        try:
            if not self._host.connect(_ANSWER_S) and not self._try_speeds(self._host, self._device):
                if not self._may_push:
                    raise self._lost("nothing", "start `s2a-edge serve-serial` on the board")
                push_server(self._device, self._host, self._target)
            self._raise_speed()
        except LineLostError as error:
            raise self._lost(str(error), "check the cable and the board") from error

    def _try_speeds(self, host: LineHost, device: SerialDevice) -> bool:
        """A board that was left at the faster speed answers there until it gives up."""
        if self._baud == self._base:
            return False
        if device.set_speed(self._baud) and host.connect(_ANSWER_S):
            self._now_baud = self._baud
            return True
        device.set_speed(self._base)
        return host.connect(_ANSWER_S)

    def _raise_speed(self) -> None:
        """Go to the wanted speed; stay where that does not work."""
        if self._now_baud == self._baud:
            return
        try:
            if self._connected().change_speed(self._now_baud, self._baud):
                self._now_baud = self._baud
                return
            reason = "nothing is understood there"
        except UsageError as error:
            reason = error.got
        self.notify(f"{self._baud} baud does not work ({reason}); staying at {self._now_baud}")

    def _connected(self) -> LineHost:
        if self._host is None:
            raise LineLostError("no line")
        return self._host

    def _drop(self) -> None:
        if self._device is not None:
            self._device.close()
        self._device = self._host = None

    def _lost(self, got: str, todo: str) -> S2AError:
        return LinkError(
            where=self.target, expected="a board that answers", got=got or "nothing", todo=todo
        )


def _speed(target: Target, name: str, otherwise: int) -> int:
    text = target.options.get(name, str(otherwise))
    if not text.isdecimal() or not 1200 <= int(text) <= 20_000_000:
        raise UsageError(
            where=f"target {target.text[:100]!a}",
            expected=f"{name}= a speed in baud, such as 921600",
            got=text[:20],
            todo="correct the target",
        )
    return int(text)
