"""The receiving half of a channel: pieces put in order, and what to acknowledge.

Standard library only.
"""

from __future__ import annotations

from s2a_edge.link.channel_frames import ACK, ACK_FRAME, MASK_BITS, WINDOW_BYTES


class Receiver:
    """The receiving half: bytes in order, and what to acknowledge."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._ready = bytearray()
        self._early: dict[int, bytes] = {}
        self._early_bytes = 0
        self._next = 0
        self._taken = 0
        self._largest, self._mask = -1, 0
        self._is_owing = False
        self._told_limit = WINDOW_BYTES

    def take_data(self, number: int, offset: int, data: bytes) -> None:
        """Bytes of the stream, in whatever order they come."""
        self._is_owing = True
        end = offset + len(data)
        if end > self._taken + WINDOW_BYTES or not data:
            return  # more than was allowed: not acknowledged
        if end > self._next and offset not in self._early:
            # Pieces of overlapping repeats add up to little; beyond that they are dropped.
            if self._early_bytes + len(data) > 2 * WINDOW_BYTES:
                return
            self._early[offset] = data
            self._early_bytes += len(data)
        elif end > self._next and len(data) > len(self._early[offset]):
            self._early_bytes += len(data) - len(self._early[offset])
            self._early[offset] = data
        self._note(number)
        self._join()

    def _join(self) -> None:
        """Move what has become contiguous behind what is ready."""
        while True:
            fitting = [offset for offset in self._early if offset <= self._next]
            if not fitting:
                return
            for offset in sorted(fitting):
                data = self._early.pop(offset)
                self._early_bytes -= len(data)
                new = data[self._next - offset :] if self._next - offset < len(data) else b""
                self._ready += new
                self._next += len(new)

    def _note(self, number: int) -> None:
        """Remember that frame ``number`` came: bit i of the mask is frame largest - 1 - i."""
        if number > self._largest:
            shift = number - self._largest
            mask = ((self._mask << 1) | 1) << (shift - 1) if self._largest >= 0 else 0
            self._mask = mask & (2**MASK_BITS - 1) if shift <= MASK_BITS + 1 else 0
            self._largest = number
        elif 0 < self._largest - number <= MASK_BITS:
            self._mask |= 1 << (self._largest - number - 1)

    def read(self) -> bytes:
        """What has arrived in order since the last call."""
        data = bytes(self._ready)
        self._ready.clear()
        self._taken += len(data)
        if self._taken + WINDOW_BYTES >= self._told_limit + WINDOW_BYTES // 2:
            self._is_owing = True  # the other side may be waiting for room
        return data

    def next_ack(self) -> bytes | None:
        """The acknowledgement to send, if one is owed."""
        if not self._is_owing or self._largest < 0:
            return None
        self._is_owing = False
        self._told_limit = self._taken + WINDOW_BYTES
        return ACK_FRAME.pack(
            ACK, self._session, self._next, self._told_limit, self._largest, self._mask
        )
