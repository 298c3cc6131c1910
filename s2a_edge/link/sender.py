"""The sending half of a channel: what has not arrived yet, when to send it again, in which pieces.

The round trip is that of the newest frame which an acknowledgement names; the window grows until
frames queue up on the way, and shrinks on losses; pieces get shorter on a line that damages many.
Standard library only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from s2a_edge.link.channel_frames import DATA, DATA_HEADER, MASK_BITS, WINDOW_BYTES

MAX_PIECE_BYTES = 2048
MIN_PIECE_BYTES = 32
_LATER_FRAMES = 3  # that came, until an earlier one counts as lost
_MIN_WAIT_S, _FIRST_WAIT_S, _MAX_WAIT_S = 0.02, 0.5, 2.0
_FIRST_PIECE_BYTES = 512
_LOSS_SAMPLE = 16  # frames whose fate decides on shorter pieces
_CLEAN_SAMPLE = 32  # frames, at most one of them lost, that allow longer ones
_TOO_LOSSY = 0.3
_MAX_BACKOFF = 4  # nobody else shares the line: waiting longer would help nobody
_MOST_FLYING = 56  # frames; an acknowledgement can tell of 65
_LEAST_WINDOW_BYTES = 8192


@dataclass(frozen=True)
class _Sent:
    offset: int
    size_bytes: int
    at_s: float


class Sender:
    """The sending half: bytes not yet known to have arrived, and when to send them (again)."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._buffer = bytearray()  # from offset `acked` on
        self.acked = 0
        self._next = 0  # offset of what has never been sent
        self._limit = WINDOW_BYTES
        self._number = 0
        self._flying: dict[int, _Sent] = {}
        self._again: deque[tuple[int, int]] = deque()
        self._window_bytes = _LEAST_WINDOW_BYTES
        self._piece_bytes = _FIRST_PIECE_BYTES
        self._has_heard = False
        self._recent: deque[bool] = deque(maxlen=_CLEAN_SAMPLE)  # True: lost
        self._round_s, self._round_var_s, self._best_s = 0.0, 0.0, 1e9
        self._backoff, self._shrunk_s = 1, -1e9
        self.repeated = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes written and not known to have arrived."""
        return len(self._buffer)

    def write(self, data: bytes) -> None:
        """Add to the stream."""
        self._buffer += data

    def wait_s(self) -> float:
        """How long an acknowledgement may take."""
        if not self._round_s:
            return _FIRST_WAIT_S * self._backoff
        wanted = max(_MIN_WAIT_S, self._round_s + 4 * self._round_var_s)
        return min(_MAX_WAIT_S, wanted * self._backoff)

    def deadline_s(self) -> float | None:
        """When something that flies counts as lost; None if nothing does."""
        if not self._flying:
            return None
        return min(sent.at_s for sent in self._flying.values()) + self.wait_s()

    def next_frame(self, now_s: float) -> bytes | None:
        """The next DATA frame to send, if one may go now."""
        self._expire(now_s)
        flying_bytes = sum(sent.size_bytes for sent in self._flying.values())
        is_full = flying_bytes + self._piece_bytes > self._window_bytes
        if self._flying and (is_full or len(self._flying) >= _MOST_FLYING):
            return None
        piece = self._next_piece()
        if piece is None:
            return None
        offset, size_bytes = piece
        start = offset - self.acked
        self._flying[self._number] = _Sent(offset, size_bytes, now_s)
        header = DATA_HEADER.pack(DATA, self._session, self._number, offset)
        self._number += 1
        return header + bytes(self._buffer[start : start + size_bytes])

    def _next_piece(self) -> tuple[int, int] | None:
        while self._again:
            offset, size_bytes = self._again.popleft()
            end = offset + size_bytes
            offset = max(offset, self.acked)  # the rest has arrived in the meantime
            if offset >= end:
                continue
            if end - offset > self._piece_bytes:
                middle = offset + self._piece_bytes
                self._again.appendleft((middle, end - middle))
                end = middle
            self.repeated += 1
            return offset, end - offset
        end = min(self.acked + len(self._buffer), self._limit, self._next + self._piece_bytes)
        if end <= self._next:
            return None
        offset, self._next = self._next, end
        return offset, end - offset

    def take_ack(self, following: int, limit: int, largest: int, mask: int, now_s: float) -> None:
        """What the other side says that it has; nonsense is ignored."""
        if not self.acked <= following <= self._next or largest >= self._number:
            return
        self._limit = max(self._limit, min(limit, following + 2**30))
        came = [n for n in self._flying if _is_in(n, largest, mask)]
        for number in came:
            self._arrived(self._flying.pop(number), now_s, is_newest=number == largest)
        del self._buffer[: following - self.acked]
        self.acked = following
        for number in [n for n in self._flying if n + _LATER_FRAMES <= largest]:
            self._lose(number, now_s)
        for number in [n for n, s in self._flying.items() if s.offset + s.size_bytes <= following]:
            del self._flying[number]

    def _arrived(self, sent: _Sent, now_s: float, *, is_newest: bool) -> None:
        self._backoff, self._has_heard = 1, True
        self._recent.append(False)
        if is_newest:  # an older one may have waited for an acknowledgement that was lost
            took_s = now_s - sent.at_s
            if not self._round_s:
                self._round_s, self._round_var_s = took_s, took_s / 2
            self._round_var_s += (abs(took_s - self._round_s) - self._round_var_s) / 4
            self._round_s += (took_s - self._round_s) / 8
            self._best_s = min(self._best_s, took_s)
        # Grow while frames do not yet queue up on the way.
        if self._round_s < 2 * self._best_s + 0.1:
            self._window_bytes = min(WINDOW_BYTES, self._window_bytes + sent.size_bytes)
        if len(self._recent) == _CLEAN_SAMPLE and sum(self._recent) <= 1:
            self._set_piece(2 * self._piece_bytes)

    def _expire(self, now_s: float) -> None:
        wait_s = self.wait_s()
        late = [n for n, sent in self._flying.items() if now_s >= sent.at_s + wait_s]
        for number in late:
            self._lose(number, now_s)
        if late:
            self._backoff = min(2 * self._backoff, _MAX_BACKOFF)
            if not self._has_heard:  # not one of a whole window came through
                self._set_piece(self._piece_bytes // 4)
            self._has_heard = False

    def _lose(self, number: int, now_s: float) -> None:
        sent = self._flying.pop(number)
        self._again.append((sent.offset, sent.size_bytes))
        self._recent.append(True)
        if now_s > self._shrunk_s + self._round_s:
            self._shrunk_s = now_s
            self._window_bytes = max(_LEAST_WINDOW_BYTES, self._window_bytes * 7 // 10)
        recent = list(self._recent)[-_LOSS_SAMPLE:]
        if len(recent) == _LOSS_SAMPLE and sum(recent) > _TOO_LOSSY * _LOSS_SAMPLE:
            self._set_piece(self._piece_bytes // 2)

    def _set_piece(self, size_bytes: int) -> None:
        self._piece_bytes = min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, size_bytes))
        self._recent.clear()


def _is_in(number: int, largest: int, mask: int) -> bool:
    if number == largest:
        return True
    behind = largest - number - 1
    return 0 <= behind < MASK_BITS and bool(mask >> behind & 1)
