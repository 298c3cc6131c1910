"""Norms of a row without its mean: RMSNorm, and division by the Euclidean length.

ONNX Runtime has no kernel for RMSNormalization at opset 21 and none for LpNormalization on GPUs,
so both are emitted in primitives, here and in ``lower``. As LayerNorm they are computed back from
their own output: what is kept of a row is its normalized values and one number.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.rule import Backward, Forward, Gradients, Rule, int_attribute, scalar, sum_to

# The least length, as in torch.nn.functional.normalize: a row of zeros stays zero.
_LEAST = 1e-12


def unit_rows(g: GraphBuilder, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x / |x| along an axis, and |x| with that axis kept."""
    axes = g.constant([int_attribute(node, "axis", -1)])
    length = g.op("Clip", g.op("ReduceL2", x, axes, keepdims=1), scalar(g, _LEAST, x))
    return g.op("Div", x, length), length


def rms_rows(g: GraphBuilder, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x / rms along the last axes, and rms = √(mean x² + ε) with them kept."""
    axes = _rms_axes(node)
    width = int(np.prod([shape_of(x)[a] for a in axes]))
    total = g.op("ReduceSumSquare", x, g.constant(axes), keepdims=1)
    mean = g.op("Mul", total, scalar(g, 1 / width, x))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    rms = g.op("Sqrt", g.op("Add", mean, scalar(g, epsilon, x)))
    return g.op("Div", x, rms), rms


def _rms_axes(node: ir.Node) -> list[int]:
    rank = len(shape_of(node.outputs[0]))
    return list(range(int_attribute(node, "axis", -1) % rank, rank))


def _unit_forward(f: Forward) -> tuple[ir.Value, ...]:
    y, length = unit_rows(f.g, f.node, f.x())
    f.save("y", y, "activation")
    f.save("length", length, "exact")
    return (f.rename(y),)


def _unit_backward(b: Backward) -> Gradients:
    # y = x / |x|: dx = (dy - y Σ dy y) / |x|
    g, y = b.g, b.saved("y")
    axes = g.constant([int_attribute(b.node, "axis", -1)])
    along = g.op("ReduceSum", g.op("Mul", b.dy, y), axes, keepdims=1)
    rest = g.op("Sub", b.dy, g.op("Mul", y, along))
    return [g.op("Div", rest, b.saved("length"))]


def _unit_refuses(node: ir.Node) -> str | None:
    order = int_attribute(node, "p", 2)
    return None if order == 2 else f"p = {order}"


def _rms_forward(f: Forward) -> tuple[ir.Value, ...]:
    x_hat, rms = rms_rows(f.g, f.node, f.x())
    f.save("x_hat", x_hat, "normalized")
    if f.needs[0]:
        f.save("rms", rms, "exact")
    return (f.rename(f.g.op("Mul", x_hat, f.x(1))),)


def _rms_backward(b: Backward) -> Gradients:
    # y = x̂ γ, u = dy γ: dx = (u - x̂ mean(u x̂)) / rms   (arXiv 1910.07467)
    g, dy, x_hat = b.g, b.dy, b.saved("x_hat")
    dx = dscale = None
    if b.needs[1]:
        dscale = sum_to(g, g.op("Mul", dy, x_hat), b.shape(1))
    if b.needs[0]:
        u = g.op("Mul", dy, b.weight(1))
        axes = g.constant(_rms_axes(b.node))
        along = g.op("ReduceMean", g.op("Mul", u, x_hat), axes, keepdims=1)
        dx = g.op("Div", g.op("Sub", u, g.op("Mul", x_hat, along)), b.saved("rms"))
    return [dx, dscale]


RULES = {
    ("", "LpNormalization"): Rule(_unit_backward, _unit_forward, _unit_refuses),
    ("", "RMSNormalization"): Rule(_rms_backward, _rms_forward),
}
