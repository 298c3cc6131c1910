"""Where trainables stand in the flat buffers of training: one for each role, all laid out alike.

Roles are parameters, accumulated gradients and the optimizer's states. An update then is one small
graph, run over one chunk of all buffers after the other, however many trainables there are: a graph
over tensors takes some 5 KiB of a session for each of its nodes, and ten nodes for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# 256 bytes: what device memory is aligned to, and a whole number of any processor's vectors.
ALIGNED_ELEMENTS = 64
# An update of up to this many numbers takes about eight runs; of more, chunks are as large as fits
# a processor's cache with their temporaries.
_CHUNKS = 8
_MOST_CHUNK_ELEMENTS = 65536


@dataclass(frozen=True)
class StateLayout:
    """The flat buffers of one bundle.

    Trainables that decay follow those that do not, and each of the two runs begins with a chunk.
    What lies between trainables and behind them is zero, and an update leaves it so.

    Attributes:
        first: the element at which each trainable begins, by name.
        elements: length of each buffer, a whole number of chunks.
        chunk_elements: how many an update takes at a time.
        decay_from: the element from which on parameters decay.
    """

    first: Mapping[str, int]
    elements: int
    chunk_elements: int
    decay_from: int

    @property
    def size_bytes(self) -> int:
        """Bytes of one role's buffer."""
        return 4 * self.elements

    def chunks(self) -> Iterable[tuple[int, bool]]:
        """First element of each chunk, and whether it decays."""
        return [(first, first >= self.decay_from)
                for first in range(0, self.elements, self.chunk_elements)]


def state_layout(trainables: Iterable[tuple[str, int, bool]]) -> StateLayout:
    """The layout that follows from a bundle's trainables.

    Args:
        trainables: name, number of elements, and whether it decays; in the bundle's order.
    """
    listed = [(name, _aligned(elements), decays) for name, elements, decays in trainables]
    total = sum(elements for _, elements, _ in listed)
    chunk = min(_MOST_CHUNK_ELEMENTS, max(ALIGNED_ELEMENTS, _aligned(math.ceil(total / _CHUNKS))))
    first: dict[str, int] = {}
    end = decay_from = 0
    for decays in (False, True):
        for name, elements, decay in listed:
            if decay == decays:
                first[name] = end
                end += elements
        end = math.ceil(end / chunk) * chunk
        decay_from = decay_from if decays else end
    return StateLayout(first, end, chunk, decay_from)


def _aligned(elements: int) -> int:
    return math.ceil(elements / ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS
