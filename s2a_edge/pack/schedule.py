"""The order of execution.

The differentiator already emits encoders where a value arises and decoders right before their
first use. What is left are nodes that were emitted early although nobody reads them for long: a
gradient's constant, a branch that waits for its sibling. Such a node sinks to its first reader
when that keeps fewer bytes alive, that is when its outputs are larger than the operands that it
would release.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from s2a_edge.pack.graph import nbytes_of
from s2a_edge.pack.plan import PLANNED_VERSION, Runtime
from s2a_edge.pack.plan.orders import Orders

_ONE_THREAD = Runtime(1, PLANNED_VERSION)


def schedule(model: ir.Model, runtime: Runtime = _ONE_THREAD) -> None:
    """Reorders the nodes of ``model`` in place if that lowers the most bytes alive at once.

    Both in values and in what the runtime takes for them, workspaces included.
    """
    nodes = list(model.graph)
    late = sink(nodes)
    if live_peak_bytes(late) >= live_peak_bytes(nodes):
        return
    number = {node: at for at, node in enumerate(nodes)}
    orders = Orders(nodes, model.graph.outputs, runtime)
    if (orders.requests(number[node] for node in late).peak_bytes
            <= orders.requests(range(len(nodes))).peak_bytes):
        model.graph.remove(nodes)
        model.graph.extend(late)


def sink(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """``nodes`` in an order in which each stands as late as it pays; topological, stable.

    Taken from last to first, so that a reader has sunk before what it reads.
    """
    after: dict[ir.Node, list[ir.Node]] = {}
    position = {node: number for number, node in enumerate(nodes)}
    order: list[ir.Node] = []
    readers = _readers(nodes)
    for node in reversed(nodes):
        reading = [r for value in node.outputs for r in readers.get(value, ())]
        if reading and _pays(node, readers, position):
            first = min(reading, key=lambda r: position[r])
            if position[first] > position[node] + 1:
                after.setdefault(first, []).append(node)
                position[node] = position[first]
                continue
        order.append(node)
    placed: list[ir.Node] = []
    for node in reversed(order):
        _place(node, after, placed)
    return placed


def _place(node: ir.Node, before: dict[ir.Node, list[ir.Node]], placed: list[ir.Node]) -> None:
    """Appends what sank to ``node``, then ``node``."""
    stack = [(node, False)]
    while stack:
        current, ready = stack.pop()
        if ready:
            placed.append(current)
            continue
        stack.append((current, True))
        stack.extend((other, False) for other in before.get(current, ()))


def _readers(nodes: Sequence[ir.Node]) -> dict[ir.Value, list[ir.Node]]:
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None:
                found.setdefault(value, []).append(node)
    return found


def _pays(node: ir.Node, readers: dict[ir.Value, list[ir.Node]], position: dict[ir.Node, int],
          ) -> bool:
    """Whether running ``node`` later keeps fewer bytes alive in between."""
    if any(value.is_graph_output() for value in node.outputs):
        return False
    made = sum(nbytes_of(value) for value in node.outputs)
    released = 0
    for value in {v for v in node.inputs if v is not None and v.producer() is not None}:
        if max(position[r] for r in readers[value]) <= position[node]:
            released += nbytes_of(value)
    return made > released


def live_peak_bytes(nodes: Sequence[ir.Node]) -> int:
    """Most bytes alive at once in this order: every value from its node to its last reader.

    A simple measure to compare orders by; what the runtime really takes is the plan's business.
    """
    last: dict[ir.Value, int] = {}
    for number, node in enumerate(nodes):
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                last[value] = number
    live = peak = 0
    for number, node in enumerate(nodes):
        live += sum(nbytes_of(value) for value in node.outputs)
        peak = max(peak, live)
        for value in {*node.inputs, *node.outputs}:
            if value is not None and value.producer() is not None and last[value] == number:
                live -= nbytes_of(value)
    return peak
