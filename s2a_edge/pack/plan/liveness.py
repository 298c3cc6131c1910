"""How many bytes are alive in each node, by kind.

A buffer is alive in the nodes [start, end): allocated while ``start`` runs, released after
``end - 1``. All of a node's buffers are alive at once, its operands and workspaces with its
results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s2a_edge.pack.plan.buffers import Buffer
from s2a_edge.spec.memory_plan import MemoryKind

LiveBytes = dict[MemoryKind, NDArray[np.int64]]


def live_bytes(buffers: Sequence[Buffer], node_count: int) -> LiveBytes:
    """Bytes alive in each node: one array [node_count] per kind, as requested (not rounded)."""
    change = {kind: np.zeros(node_count + 1, np.int64) for kind in MemoryKind}
    for buffer in buffers:
        if buffer.start < buffer.end:
            change[buffer.kind][buffer.start] += buffer.size_bytes
            change[buffer.kind][buffer.end] -= buffer.size_bytes
    return {kind: np.cumsum(array)[:node_count] for kind, array in change.items()}


def peak_node(live: LiveBytes) -> int:
    """Index of the first node at which the most bytes are alive."""
    total = np.sum(list(live.values()), axis=0)
    return int(np.argmax(total)) if total.size else 0


def alive_at(buffers: Sequence[Buffer], node: int) -> list[Buffer]:
    """The buffers alive in ``node``, the largest first."""
    alive = (b for b in buffers if b.start <= node < b.end)
    return sorted(alive, key=lambda b: (-b.size_bytes, b.start))
