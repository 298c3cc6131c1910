"""Operators that ONNX Runtime would take apart itself are taken apart here.

HardSwish and Mish have no kernel of their own on the CPU: the runtime expands them when it loads
the graph, the parts run out of file order, and the memory plan would be of another graph. They are
differentiated as one operator (their derivative is one code) and lowered afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from s2a_edge.pack.graph import KIND_KEY, GraphBuilder, module_of


def _hardswish(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # x · max(0, min(1, x/6 + 1/2))
    return g.op("Mul", x, g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _mish(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))


_LOWERED: dict[str, Callable[[GraphBuilder, ir.Value], ir.Value]] = {
    "HardSwish": _hardswish, "Mish": _mish,
}


def lower(model: ir.Model) -> None:
    """Replaces such operators in ``model``; their outputs keep their names."""
    graph = model.graph
    taken = {v.name for n in graph for v in n.outputs if v.name} | {
        n.name for n in graph if n.name} | set(graph.initializers)
    g = GraphBuilder(taken=taken)
    for node in list(graph):
        if node.domain or node.op_type not in _LOWERED:
            continue
        x, old = node.inputs[0], node.outputs[0]
        assert x is not None
        g.nodes.clear()
        g.module = module_of(node)
        new = _LOWERED[node.op_type](g, x)
        graph.insert_before(node, g.nodes)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name, new.shape, new.type = old.name, old.shape, old.type
        new.metadata_props[KIND_KEY] = old.metadata_props.get(KIND_KEY, "working")
