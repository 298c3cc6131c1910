"""A simulator of ONNX Runtime's arena: would this traffic fit under a limit of so many bytes?

The arena ("best fit with coalescing") takes its memory in regions, the first one as large as its
limit allows. A request is rounded up to 256 bytes and gets the smallest free chunk that holds it,
the one at the lowest address among equals. The chunk is split if the rest would be as large as the
request or at least :data:`DEAD_BYTES`. A released chunk merges with free neighbours. How full an
arena can get therefore depends on the order of requests, and has to be tried out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from s2a_edge.pack.plan.buffers import Buffer, Traffic

QUANTUM_BYTES = 256
# ``max_dead_bytes_per_chunk`` of our sessions: what a request may waste instead of a split.
DEAD_BYTES = 1024
# ``initial_chunk_size_bytes`` is a 32-bit integer.
_FIRST_REGION_BYTES = 2**31
# A plan must also hold a little above the size that was found (see smallest_arena_bytes).
_WINDOW = 0.02
_WINDOW_SAMPLES = 16
_GRID_STEPS = 40


class ArenaFullError(Exception):
    """No free chunk holds the request and the limit allows no further region."""


@dataclass
class _Chunk:
    offset: int
    size: int
    previous: _Chunk | None = None
    following: _Chunk | None = None
    free: bool = True


def round_up(size_bytes: int) -> int:
    """The bytes of a chunk that the arena makes for a request."""
    return -(-size_bytes // QUANTUM_BYTES) * QUANTUM_BYTES


def rounded_peak_bytes(buffers: Sequence[Buffer], node_count: int) -> int:
    """The most bytes alive at once in the arena's granules: no arena can be smaller."""
    change = np.zeros(node_count + 1, np.int64)
    for buffer in buffers:
        if buffer.start < buffer.end:
            change[buffer.start] += round_up(buffer.size_bytes)
            change[buffer.end] -= round_up(buffer.size_bytes)
    return int(np.cumsum(change).max(initial=0))


class Arena:
    """An arena with a hard limit.

    Args:
        limit_bytes: the most that all regions together may take.
        counted_bytes: taken from the limit by others (small constants of the session).
    """

    def __init__(self, limit_bytes: int, counted_bytes: int = 0) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = counted_bytes
        self._next_region_bytes = min(round_up(limit_bytes), _FIRST_REGION_BYTES)
        self._free: list[tuple[int, int]] = []  # (size, offset), sorted: best fit is a bisection
        self._chunks: dict[int, _Chunk] = {}
        self._end = 0

    def allocate(self, size_bytes: int) -> int:
        """The offset of a chunk of at least ``size_bytes`` > 0.

        Raises:
            ArenaFullError: there is none.
        """
        wanted = round_up(size_bytes)
        found = self._best_fit(wanted)
        if found is None:
            self._extend(wanted)
            found = self._best_fit(wanted)
            assert found is not None, "a new region holds what it was made for"
        if found.size >= 2 * wanted or found.size - wanted >= DEAD_BYTES:
            self._split(found, wanted)
        found.free = False
        return found.offset

    def release(self, offset: int) -> None:
        """Gives back the chunk at ``offset`` and merges it with free neighbours."""
        chunk = self._chunks[offset]
        assert not chunk.free, f"chunk at {offset} released twice"
        chunk.free = True
        if chunk.following is not None and chunk.following.free:
            self._forget(chunk.following)
            self._merge(chunk, chunk.following)
        if chunk.previous is not None and chunk.previous.free:
            chunk = chunk.previous
            self._forget(chunk)
            assert chunk.following is not None
            self._merge(chunk, chunk.following)
        insort(self._free, (chunk.size, chunk.offset))

    @property
    def free_chunk_count(self) -> int:
        """Free chunks; one if nothing is in use and there is one region."""
        return len(self._free)

    def size_at(self, offset: int) -> int:
        """Bytes of the chunk at ``offset``."""
        return self._chunks[offset].size

    def used_chunks(self) -> Iterator[tuple[int, int]]:
        """(offset, size) of all chunks in use, in no order."""
        return ((c.offset, c.size) for c in self._chunks.values() if not c.free)

    def _best_fit(self, wanted: int) -> _Chunk | None:
        index = bisect_left(self._free, (wanted, -1))
        if index == len(self._free):
            return None
        return self._chunks[self._free.pop(index)[1]]

    def _extend(self, wanted: int) -> None:
        available = (self._limit_bytes - self._taken_bytes) // QUANTUM_BYTES * QUANTUM_BYTES
        if wanted > available:
            raise ArenaFullError
        grown = False
        while wanted > self._next_region_bytes:
            self._next_region_bytes *= 2
            grown = True
        size = min(self._next_region_bytes, available)
        if not grown:
            self._next_region_bytes *= 2
        self._taken_bytes += size
        # Chunks of different regions are never neighbours, hence the gap.
        chunk = _Chunk(self._end, size)
        self._end += size + QUANTUM_BYTES
        self._chunks[chunk.offset] = chunk
        insort(self._free, (chunk.size, chunk.offset))

    def _split(self, chunk: _Chunk, size: int) -> None:
        rest = _Chunk(chunk.offset + size, chunk.size - size, chunk, chunk.following)
        if rest.following is not None:
            rest.following.previous = rest
        chunk.size, chunk.following = size, rest
        self._chunks[rest.offset] = rest
        insort(self._free, (rest.size, rest.offset))

    def _forget(self, chunk: _Chunk) -> None:
        del self._free[bisect_left(self._free, (chunk.size, chunk.offset))]

    def _merge(self, chunk: _Chunk, following: _Chunk) -> None:
        chunk.size += following.size
        chunk.following = following.following
        if chunk.following is not None:
            chunk.following.previous = chunk
        del self._chunks[following.offset]


def fits(traffic: Traffic, limit_bytes: int) -> bool:
    """Whether a run with this traffic succeeds in an arena of ``limit_bytes``."""
    arena = Arena(limit_bytes, traffic.counted_bytes)
    offsets: dict[int, int] = {}
    try:
        for node in traffic.nodes:
            for index in node.allocated:
                size = traffic.buffers[index].size_bytes
                if size > 0:  # an empty tensor has no buffer
                    offsets[index] = arena.allocate(size)
            for index in node.released:
                if index in offsets:
                    arena.release(offsets.pop(index))
    except ArenaFullError:
        return False
    return True


def smallest_arena_bytes(traffic: Traffic, peak_bytes: int) -> int:
    """The smallest limit that works, and with it everything up to 2 % above it (sampled).

    A larger arena is not always a better one: another chunk may fit best. So the lowest working
    size of a coarse grid is refined by bisection, and moved up while any of the samples above it
    fails.

    Args:
        traffic: what the run asks for.
        peak_bytes: its liveness peak, rounded or not: no smaller limit can work.
    """
    floor = max(round_up(peak_bytes), QUANTUM_BYTES)
    counted = round_up(traffic.counted_bytes)
    low = floor + counted
    while True:
        found = _first_working(traffic, low)
        failed = next((s for s in reversed(_window(found)) if not fits(traffic, s)), None)
        if failed is None:
            return found
        low = failed + QUANTUM_BYTES


def _first_working(traffic: Traffic, low: int) -> int:
    """A working size whose neighbour below fails, near the lowest one at or above ``low``."""
    if fits(traffic, low):
        return low
    step = max(round_up(low // _GRID_STEPS), QUANTUM_BYTES)
    failing, working = low, low + step
    while not fits(traffic, working):
        failing, working = working, working + step
    while working - failing > QUANTUM_BYTES:
        middle = (failing + working) // 2 // QUANTUM_BYTES * QUANTUM_BYTES
        if fits(traffic, middle):
            working = middle
        else:
            failing = middle
    return working


def _window(size: int) -> list[int]:
    """Sizes above ``size``, rising, that must work too."""
    width = round_up(int(size * _WINDOW))
    count = min(_WINDOW_SAMPLES, width // QUANTUM_BYTES)
    return sorted({size + round_up(width * k // count) for k in range(1, count + 1)})
