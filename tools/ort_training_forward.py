"""The forward graph in operators that onnxruntime-training's gradient builder may know.

What our normalization spells in its own way, not the model: ``FusedMatMul`` is a product with its
transposes and scale, and what is left of GroupNorm is an ``InstanceNormalization`` of groups.
Neither has a gradient there, nor have ``BatchNormalization`` in its frozen form, ``HardSigmoid``
and ``ReduceSumSquare``. ``Gelu`` with its tanh has the gradient of the exact one there.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import shape_of


def spell_out(model: ir.Model) -> None:
    """Takes those operators apart, in place."""
    graph = model.graph
    taken = {v.name for n in graph for v in n.outputs} | {n.name for n in graph}
    g = GraphBuilder("spelled_", [*graph.initializers, *(name for name in taken if name)])
    for node in list(graph):
        spelled = _SPELLED.get(node.op_type)
        exact = node.op_type == "Gelu" and node.attributes.get_string("approximate", "") != "tanh"
        if spelled is None or exact:
            continue
        first = len(g.nodes)
        made = spelled(g, node)
        graph.insert_before(node, g.nodes[first:])
        y = node.outputs[0]
        name = y.name
        y.replace_all_uses_with(made, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        made.name = name
    for name, value in g.initializers.items():
        graph.initializers[name] = value


def _product(g: GraphBuilder, node: ir.Node) -> ir.Value:
    a, b = (_turned(g, node, index, flag) for index, flag in enumerate(("transA", "transB")))
    product = g.op("MatMul", a, b)
    alpha = node.attributes.get_float("alpha", 1.0)
    return product if alpha == 1.0 else g.op(
        "Mul", product, g.constant(alpha, "float32"))


def _instance_normalization(g: GraphBuilder, node: ir.Node) -> ir.Value:
    """(x - mean) / sqrt(variance + ε) over all axes behind the second, then scale and offset."""
    x, scale, bias = node.inputs
    assert x is not None and scale is not None and bias is not None
    rank = len(shape_of(x))
    axes = g.constant(list(range(2, rank)))
    centred = g.op("Sub", x, g.op("ReduceMean", x, axes, keepdims=1))
    variance = g.op("ReduceMean", g.op("Mul", centred, centred), axes, keepdims=1)
    epsilon = g.constant(node.attributes.get_float("epsilon", 1e-5), "float32")
    unit = g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, epsilon)))
    shape = g.constant([shape_of(x)[1], *[1] * (rank - 2)])
    scaled = g.op("Mul", unit, g.op("Reshape", scale, shape))
    return g.op("Add", scaled, g.op("Reshape", bias, shape))


def _sum_of_squares(g: GraphBuilder, node: ir.Node) -> ir.Value:
    x, *axes = node.inputs
    return g.op("ReduceSum", g.op("Mul", x, x), *axes,
                keepdims=node.attributes.get_int("keepdims", 1))


def _hard_sigmoid(g: GraphBuilder, node: ir.Node) -> ir.Value:
    """max(0, min(1, α x + β)) as the difference of two ramps."""
    x, = node.inputs
    alpha, beta = (g.constant(node.attributes.get_float(n, d), "float32")
                   for n, d in (("alpha", 0.2), ("beta", 0.5)))
    line = g.op("Add", g.op("Mul", x, alpha), beta)
    return g.op("Sub", g.op("Relu", line),
                g.op("Relu", g.op("Sub", line, g.constant(1.0))))


def _tanh_gelu(g: GraphBuilder, node: ir.Node) -> ir.Value:
    """x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    x, = node.inputs
    cubic, root, half, one = (g.constant(v, "float32")
                              for v in (0.044715, (2 / np.pi) ** 0.5, 0.5, 1.0))
    bend = g.op("Mul", cubic, g.op("Mul", x, g.op("Mul", x, x)))
    tanh = g.op("Tanh", g.op("Mul", root, g.op("Add", x, bend)))
    return g.op("Mul", g.op("Mul", half, x), g.op("Add", one, tanh))


def _batch_normalization(g: GraphBuilder, node: ir.Node) -> ir.Value:
    """(x - mean) · scale / sqrt(variance + ε) + offset for each channel, all of them given."""
    x, *rest = node.inputs
    assert x is not None
    shape = g.constant([-1, *[1] * (len(shape_of(x)) - 2)])
    scale, bias, mean, variance = (g.op("Reshape", v, shape) for v in rest)
    epsilon = g.constant(node.attributes.get_float("epsilon", 1e-5), "float32")
    factor = g.op("Div", scale, g.op("Sqrt", g.op("Add", variance, epsilon)))
    return g.op("Add", g.op("Mul", g.op("Sub", x, mean), factor), bias)


def _turned(g: GraphBuilder, node: ir.Node, index: int, flag: str) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    if not node.attributes.get_int(flag, 0):
        return value
    axes = list(range(len(shape_of(value))))
    return g.op("Transpose", value, perm=[*axes[:-2], axes[-1], axes[-2]])


_SPELLED = {
    "BatchNormalization": _batch_normalization,
    "FusedMatMul": _product,
    "Gelu": _tanh_gelu,
    "HardSigmoid": _hard_sigmoid,
    "InstanceNormalization": _instance_normalization,
    "ReduceSumSquare": _sum_of_squares,
}
