"""The reliable streams on a simulated line, with a clock of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.link.channel import Channel
from s2a_edge.link.channel_frames import WINDOW_BYTES
from s2a_edge.link.framing import Deframer, encode_frame
from s2a_edge.link.receiver import Receiver


@dataclass
class Way:
    """One direction: bytes leave at a rate, some damaged or lost, and arrive a little later."""

    rate: float
    delay_s: float
    damaged: float
    lost: float
    draw: random.Random
    free_s: float = 0.0
    carried: int = 0

    def __post_init__(self) -> None:
        self.flying: list[tuple[float, bytes]] = []

    def send(self, data: bytes, now_s: float) -> None:
        self.carried += len(data)
        self.free_s = max(self.free_s, now_s) + len(data) / self.rate
        self.flying.append((self.free_s + self.delay_s, self._spoiled(data)))

    def _spoiled(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            chance = self.draw.random()
            if chance >= self.lost:
                out.append(byte ^ (0x10 if chance < self.lost + self.damaged else 0))
        return bytes(out)

    def arrived(self, now_s: float) -> bytes:
        out = b""
        while self.flying and self.flying[0][0] <= now_s:
            out += self.flying.pop(0)[1]
        return out


def simulate(
    size_bytes: int,
    *,
    rate: float = 92_160,
    damaged: float = 0.0,
    lost: float = 0.0,
    seed: int = 0,
    reads: bool = True,
) -> tuple[bytes, bytes, float, int]:
    """What was sent, what arrived, the seconds that took, and the bytes on the wire."""
    draw = random.Random(seed)
    content = draw.randbytes(size_bytes)
    ends = (Channel(1), Channel(1))
    readers = (Deframer(), Deframer())
    ways = tuple(Way(rate, 0.002, damaged, lost, draw) for _ in ends)
    ends[0].sender.write(content)
    got, now_s = b"", 0.0
    while len(got) < size_bytes and now_s < 60:
        for end, way in zip(ends, ways, strict=True):
            while way.free_s <= now_s + 0.01 and (frame := end.poll(now_s)) is not None:
                way.send(encode_frame(frame), now_s)
        coming = [way.flying[0][0] for way in ways if way.flying]
        now_s = max(now_s + 1e-4, min([*coming, now_s + 0.005]))
        for way, end, reader in zip(ways, reversed(ends), readers, strict=True):
            for frame in reader.feed(way.arrived(now_s)):
                end.receive(frame, now_s)
        got += ends[1].receiver.read() if reads else b""
    return content, got, now_s, ways[0].carried


def test_a_clean_line_is_used_well() -> None:
    content, got, seconds, carried = simulate(400_000)
    assert got == content
    assert len(content) / carried > 0.97
    assert len(content) / 92_160 / seconds > 0.95  # simulated seconds


@pytest.mark.parametrize("rate", [960, 11_520, 3_000_000])
def test_slow_and_fast_lines(rate: float) -> None:
    size_bytes = min(20 * int(rate), 300_000)
    content, got, seconds, _ = simulate(size_bytes, rate=rate)
    assert got == content
    assert size_bytes / rate / seconds > 0.8


@given(st.floats(0, 0.012), st.floats(0, 0.012), st.integers(0, 2**32), st.integers(1, 6000))
def test_lossy_lines_deliver_the_same_bytes(
    damaged: float, lost: float, seed: int, size_bytes: int
) -> None:
    content, got, _, _ = simulate(size_bytes, damaged=damaged, lost=lost, seed=seed)
    assert got == content


def test_who_does_not_read_is_not_flooded() -> None:
    _, _, _, carried = simulate(WINDOW_BYTES * 3, rate=3_000_000, reads=False)
    assert WINDOW_BYTES <= carried < 2 * WINDOW_BYTES


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 120)), max_size=30))
def test_pieces_in_any_order_and_overlap_join(pieces: list[tuple[int, int]]) -> None:
    content = bytes(range(256)) * 3
    receiver, got = Receiver(1), b""
    for number, (offset, size_bytes) in enumerate(pieces):
        receiver.take_data(number, offset, content[offset : offset + size_bytes])
        got += receiver.read()
    reach = 0  # how far the pieces reach without a gap
    while grown := [o + s for o, s in pieces if o <= reach < o + s]:
        reach = max(grown)
    assert got == content[:reach]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1),
       st.integers(0, 2**64 - 1))  # fmt: skip
def test_no_acknowledgement_makes_a_sender_lose_bytes(
    following: int, limit: int, largest: int, mask: int
) -> None:
    channel = Channel(1)
    channel.sender.write(b"x" * 5000)
    while channel.poll(0.0) is not None:
        pass
    channel.sender.take_ack(following, limit, largest, mask, 0.1)
    assert channel.sender.acked + channel.sender.pending_bytes == 5000
