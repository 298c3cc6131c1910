"""A lower bound: what no order of the nodes and no allocator can do without.

When a node runs, its ancestors have run and its descendants have not; of all other nodes any may
have run whose own ancestors have. A value is alive if its producer has run and one of its readers
has not. The choice that keeps the fewest bytes alive is a minimum cut between ancestors and
descendants; those bytes, and what the node itself writes and takes as workspace, must fit together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.graph import nbytes_of
from s2a_edge.pack.plan.kernel_memory import (
    alias_source,
    in_place_source,
    overwritable,
    present_outputs,
)
from s2a_edge.pack.plan.min_cut import UNLIMITED, FlowNetwork
from s2a_edge.pack.plan.pool import pooled_values
from s2a_edge.pack.plan.workspaces import Runtime, workspaces_of

# Cuts are computed for this many nodes; the bound is the largest of them.
_CUTS = 12


@dataclass(frozen=True)
class _Buffer:
    """A value with all its views; readers are node indices."""

    size_bytes: int
    producer: int
    readers: frozenset[int]


@dataclass(frozen=True)
class _Order:
    """Which nodes must run before and after which: bit i of a set stands for node i."""

    parents: list[set[int]]
    before: list[int]
    after: list[int]


def lower_bound_bytes(model: ir.Model, *, bound_outputs: bool, runtime: Runtime) -> int:
    """Bytes that any topological order of ``model`` needs at its peak.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    nodes = list(model.graph)
    if not nodes:
        return 0
    # What lies in the pool is bound, but takes memory as it would anywhere.
    pooled = pooled_values(model)
    bound = set(model.graph.outputs) - set(pooled) if bound_outputs else set()
    values = _buffers(nodes, bound)
    own = [_own_bytes(node, values, runtime, pooled) for node in nodes]
    order = _order(nodes)
    buffers = list(values.values())
    operands = [0] * len(nodes)
    for buffer in buffers:
        for reader in buffer.readers:
            operands[reader] += buffer.size_bytes
    simple = max(range(len(nodes)), key=lambda at: own[at] + operands[at])
    return max(own[at] + _alive_bytes(at, buffers, order)
               for at in {simple, *_well_placed(order)})


def _buffers(nodes: list[ir.Node], external: set[ir.Value]) -> dict[ir.Value, _Buffer]:
    """Every buffer by the value that is first in it; views are counted as what they view."""
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
    return {value: _Buffer(nbytes_of(value), at, frozenset(readers[value]))
            for value, at in producer.items()}


def _own_bytes(node: ir.Node, buffers: dict[ir.Value, _Buffer], runtime: Runtime,
               pooled: Container[ir.Value]) -> int:
    """Results and workspaces of a node; a result that may be written over an operand is free."""
    workspaces = workspaces_of(node, runtime)
    results = sum(buffers[value].size_bytes for value in present_outputs(node)
                  if value in buffers and in_place_source(node) is None
                  and not (value in pooled and overwritable(node)))
    return sum(workspaces.before_bytes) + sum(workspaces.after_bytes) + results


def _order(nodes: list[ir.Node]) -> _Order:
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
    return _Order(parents, before, after)


def _well_placed(order: _Order) -> list[int]:
    """Nodes whose place in any order is nearly fixed, spread from first to last."""
    fixed = [a.bit_count() + b.bit_count() for a, b in zip(order.before, order.after, strict=True)]
    count = len(fixed)
    chosen = []
    for part in range(_CUTS):
        members = range(part * count // _CUTS, (part + 1) * count // _CUTS)
        if members:
            chosen.append(max(members, key=lambda at: fixed[at]))
    return chosen


def _alive_bytes(at: int, buffers: list[_Buffer], order: _Order) -> int:
    """The fewest bytes that can be alive while node ``at`` runs, its results left out."""
    done, waiting = order.before[at], order.after[at] | 1 << at
    vertex: dict[int, int] = {}

    def vertex_of(node: int) -> int:
        return vertex.setdefault(node, len(vertex) + 2)

    source, sink = 0, 1
    edges: list[tuple[int, int, int]] = []
    certain = 0
    free_count = 0
    for buffer in buffers:
        if waiting >> buffer.producer & 1:
            continue
        made = done >> buffer.producer & 1
        awaited = any(waiting >> reader & 1 for reader in buffer.readers)
        if made and awaited:
            certain += buffer.size_bytes
            continue
        start = source if made else vertex_of(buffer.producer)
        if awaited:
            edges.append((start, sink, buffer.size_bytes))
            continue
        free_count += 1
        alive = vertex_of(-free_count)
        edges.append((start, alive, buffer.size_bytes))
        edges += [(alive, vertex_of(r), UNLIMITED) for r in buffer.readers if not done >> r & 1]
    for node in range(len(order.parents)):
        if not (done | waiting) >> node & 1:
            # A node can only have run if the nodes it reads from have.
            edges += [(vertex_of(node), vertex_of(parent), UNLIMITED)
                      for parent in order.parents[node] if not done >> parent & 1]
    network = FlowNetwork(len(vertex) + 2)
    for edge in edges:
        network.connect(*edge)
    return certain + network.min_cut(source, sink)
