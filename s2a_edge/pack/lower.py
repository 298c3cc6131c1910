"""Operators that ONNX Runtime would take apart itself are taken apart here.

HardSwish, Mish and GroupNormalization have no kernel of their own on the CPU: the runtime expands
them when it loads the graph, the parts run out of file order, and the memory plan would be of
another graph. They are differentiated as one operator and lowered afterwards; so are
RMSNormalization, which opset 21 lacks, and LpNormalization, Celu and Mean, which GPUs do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import KIND_KEY, module_of, shape_of
from s2a_edge.pack.ops.channel_norm import affine_maps
from s2a_edge.pack.ops.row_norm import rms_rows, unit_rows
from s2a_edge.pack.rule import reshape


def _operands(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None]


def _hardswish(g: GraphBuilder, node: ir.Node) -> ir.Value:
    # x · max(0, min(1, x/6 + 1/2))
    x, = _operands(node)
    return g.op("Mul", x, g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _mish(g: GraphBuilder, node: ir.Node) -> ir.Value:
    x, = _operands(node)
    return g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))


def _group_normalization(g: GraphBuilder, node: ir.Node) -> ir.Value:
    # Where no gradient passes: each group as one channel, then scale and offset per channel.
    x, scale, bias = _operands(node)
    groups, epsilon = (node.attributes.get_int("num_groups", 1),
                       node.attributes.get_float("epsilon", 1e-5))
    if groups == shape_of(x)[1] and len(shape_of(x)) > 2:
        return g.op("InstanceNormalization", x, scale, bias, epsilon=epsilon)
    ones, zeros = (g.constant(np.full(groups, v, np.float32)) for v in (1.0, 0.0))
    rows = reshape(g, x, (shape_of(x)[0], groups, math.prod(shape_of(x)[1:]) // groups))
    unit = g.op("InstanceNormalization", rows, ones, zeros, epsilon=epsilon)
    return affine_maps(g, reshape(g, unit, shape_of(x)), scale, bias)


def _lp_normalization(g: GraphBuilder, node: ir.Node) -> ir.Value:
    x, = _operands(node)
    return unit_rows(g, node, x)[0]


def _rms_normalization(g: GraphBuilder, node: ir.Node) -> ir.Value:
    x, scale = _operands(node)
    return g.op("Mul", rms_rows(g, node, x)[0], scale)


def _celu(g: GraphBuilder, node: ir.Node) -> ir.Value:
    # max(0, x) + min(0, α (exp(x/α) - 1)) = α elu(x/α)
    x, = _operands(node)
    alpha = node.attributes.get_float("alpha", 1.0)
    return g.op("Mul", g.op("Elu", g.op("Mul", x, g.constant(1 / alpha))), g.constant(alpha))


def _mean(g: GraphBuilder, node: ir.Node) -> ir.Value:
    first, *others = _operands(node)
    total = functools.reduce(lambda a, b: g.op("Add", a, b), others, first)
    return g.op("Mul", total, g.constant(1 / (1 + len(others))))


_LOWERED: dict[str, Callable[[GraphBuilder, ir.Node], ir.Value]] = {
    "HardSwish": _hardswish, "Mish": _mish, "GroupNormalization": _group_normalization,
    "LpNormalization": _lp_normalization, "RMSNormalization": _rms_normalization,
    "Celu": _celu, "Mean": _mean,
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
        old = node.outputs[0]
        g.nodes.clear()
        g.module = module_of(node)
        new = _LOWERED[node.op_type](g, node)
        for value in g.initializers.values():
            if value.name not in graph.initializers:
                graph.register_initializer(value)
        graph.insert_before(node, g.nodes)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name, new.shape, new.type = old.name, old.shape, old.type
        new.metadata_props[KIND_KEY] = old.metadata_props.get(KIND_KEY, "working")
