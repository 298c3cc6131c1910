"""A lower bound: what no order of the nodes and no allocator can do without.

A value is certainly alive while a node runs if its producer is among the node's ancestors and one
of its readers among the node's descendants. Those, and what the node itself reads, writes and
takes as workspace, must fit together.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from s2a_edge.pack.graph import nbytes_of
from s2a_edge.pack.plan.kernel_memory import alias_source, in_place_source, present_outputs
from s2a_edge.pack.plan.workspaces import workspaces_of


def lower_bound_bytes(model: ir.Model, *, bound_outputs: bool, threads: int) -> int:
    """Bytes that any topological order of ``model`` needs at its peak.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    nodes = list(model.graph)
    if not nodes:
        return 0
    external = set(model.graph.outputs) if bound_outputs else set()
    producer, readers, sizes = _buffers(nodes, external)
    before, after = _reachable(nodes)
    need = np.zeros(len(nodes), np.int64)
    for root, size in sizes.items():
        alive = _bits(after[producer[root]], len(nodes))
        awaited = 0
        for reader in readers[root]:
            awaited |= before[reader]
        alive &= _bits(awaited, len(nodes))
        alive[list(readers[root])] = True
        alive[producer[root]] = not _written_over(nodes[producer[root]], root, sizes)
        need += size * alive
    need += [sum(w.before_bytes) + sum(w.after_bytes)
             for w in (workspaces_of(node, threads) for node in nodes)]
    return int(need.max())


def _buffers(nodes: list[ir.Node], external: set[ir.Value],
             ) -> tuple[dict[ir.Value, int], dict[ir.Value, set[int]], dict[ir.Value, int]]:
    """Producer, readers and size of every buffer, views counted as what they view."""
    root: dict[ir.Value, ir.Value] = {}
    producer: dict[ir.Value, int] = {}
    readers: dict[ir.Value, set[int]] = defaultdict(set)
    for at, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and value in root:
                readers[root[value]].add(at)
        view = alias_source(node)
        for value in present_outputs(node):
            if value in external:
                continue
            if view is None:
                root[value], producer[value] = value, at
            elif view in root:
                root[value] = root[view]
    return producer, readers, {value: nbytes_of(value) for value in producer}


def _written_over(node: ir.Node, value: ir.Value, sizes: dict[ir.Value, int]) -> bool:
    """Whether ``value`` may take the buffer of an operand, which is counted in its place."""
    source = in_place_source(node)
    if source is None:
        return False
    while source not in sizes:  # a view: what it views is counted
        maker = source.producer()
        view = alias_source(maker) if maker is not None else None
        if view is None:
            return False
        source = view
    return sizes[source] >= nbytes_of(value)


def _reachable(nodes: list[ir.Node]) -> tuple[list[int], list[int]]:
    """Ancestors and descendants of each node as bit sets (bit i: node i)."""
    index = {node: at for at, node in enumerate(nodes)}
    before = [0] * len(nodes)
    after = [0] * len(nodes)
    parents = [
        {index[p] for v in node.inputs if v is not None and (p := v.producer()) is not None}
        for node in nodes
    ]
    for at, above in enumerate(parents):
        for parent in above:
            before[at] |= before[parent] | 1 << parent
    for at in range(len(nodes) - 1, -1, -1):
        for parent in parents[at]:
            after[parent] |= after[at] | 1 << at
    return before, after


def _bits(members: int, count: int) -> NDArray[np.bool_]:
    """A bit set as an array of [count] booleans."""
    raw = np.frombuffer(members.to_bytes(-(-count // 8), "little"), np.uint8)
    return np.unpackbits(raw, count=count, bitorder="little").astype(bool)
