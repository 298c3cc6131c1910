"""Layer normalization and softmax: both are computed back from their own output."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.native_ops import native
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    extra_outputs,
    int_attribute,
    sum_to,
)


def _layer_norm_forward(f: Forward) -> tuple[ir.Value, ...]:
    # The scale is applied apart, so that the normalized values exist by themselves: they are
    # what the backward needs, and x = y / scale would fail where a scale is near zero.
    g, x = f.g, f.x()
    axis = int_attribute(f.node, "axis", -1)
    width = shape_of(x)[axis:]
    ones = g.constant(np.ones(width, dtype_of(x).numpy()))
    x_hat, mean, inverse_deviation = g.multi(
        "LayerNormalization", [x, ones], 3, axis=axis,
        epsilon=f.node.attributes.get_float("epsilon", 1e-5))
    mean.name = ""  # not computed: an output that nobody reads would stay until the run ends
    if f.needs[0]:
        f.save("x_hat", x_hat, "normalized")
        if dtype_of(inverse_deviation) != dtype_of(x):  # the operator's statistics are float32
            inverse_deviation = g.op("Cast", inverse_deviation, to=int(dtype_of(x)))
        f.save("inverse_deviation", inverse_deviation, "exact")
    elif f.needs[1]:
        f.save("x_hat", x_hat, "normalized")
    y = g.op("Mul", x_hat, f.x(1))
    if len(f.inputs) > 2 and f.inputs[2] is not None:
        y = g.op("Add", y, f.x(2))
    return (f.rename(y),)


def _layer_norm_backward(b: Backward) -> Gradients:
    # y = x̂ γ + β, u = dy γ:  dx = (u - mean(u) - x̂ mean(u x̂)) / σ   (arXiv 1607.06450)
    g, dy = b.g, b.dy
    axis = int_attribute(b.node, "axis", -1) % len(b.shape(0))
    axes = g.constant(list(range(axis, len(b.shape(0)))))
    grads: list[ir.Value | None] = [None] * len(b.needs)
    if len(b.needs) > 2 and b.needs[2]:
        grads[2] = sum_to(g, dy, b.shape(2))
    if b.needs[1]:
        grads[1] = sum_to(g, g.op("Mul", dy, b.saved("x_hat")), b.shape(1))
    if b.needs[0]:
        x_hat = b.saved("x_hat")
        width = b.shape(0)[axis:]
        if g.native and b.shape(1) == width and _is_float32(dy):
            grads[0] = native(g, "LayerNormGradient", dy, b.weight(1), x_hat,
                              b.saved("inverse_deviation"), shape=b.shape(0),
                              inner=math.prod(width))
            return grads
        u = g.op("Mul", dy, b.weight(1))
        along = g.op("ReduceMean", g.op("Mul", u, x_hat), axes, keepdims=1)
        centred = g.op("Sub", u, g.op("ReduceMean", u, axes, keepdims=1))
        rest = g.op("Sub", centred, g.op("Mul", x_hat, along))
        grads[0] = g.op("Mul", rest, b.saved("inverse_deviation"))
    return grads


def _is_float32(value: ir.Value) -> bool:
    return dtype_of(value) == ir.DataType.FLOAT


def _rows_last(node: ir.Node) -> list[int] | None:
    """The swap of axes that puts the axis of a softmax last; None where it is last."""
    rank = len(shape_of(node.outputs[0]))
    axis = int_attribute(node, "axis", -1) % rank
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    return None if axis == rank - 1 else perm


def _save_probabilities(f: Forward, p: ir.Value) -> None:
    # Decoded probabilities are made to sum to 1 along the last axis.
    perm = _rows_last(f.node)
    f.save("p", p if perm is None else f.g.op("Transpose", p, perm=perm), "probability")


def _probabilities(b: Backward) -> ir.Value:
    perm, p = _rows_last(b.node), b.saved("p")
    return p if perm is None else b.g.op("Transpose", p, perm=perm)


def _softmax_forward(f: Forward) -> tuple[ir.Value, ...]:
    outputs = f.emit()
    _save_probabilities(f, outputs[0])
    return outputs


def _softmax_backward(b: Backward) -> Gradients:
    # dx = p (dy - Σ dy p)
    g, p = b.g, _probabilities(b)
    axis = int_attribute(b.node, "axis", -1)
    if g.native and _rows_last(b.node) is None and _is_float32(p):
        return [native(g, "SoftmaxGradient", p, b.dy, shape=shape_of(p), inner=shape_of(p)[-1])]
    total = g.op("ReduceSum", g.op("Mul", b.dy, p), g.constant([axis]), keepdims=1)
    return [g.op("Mul", g.op("Sub", b.dy, total), p)]


def _log_softmax_forward(f: Forward) -> tuple[ir.Value, ...]:
    outputs = f.emit()
    _save_probabilities(f, f.g.op("Exp", outputs[0]))
    return outputs


def _log_softmax_backward(b: Backward) -> Gradients:
    # dx = dy - p Σ dy
    g, axis = b.g, int_attribute(b.node, "axis", -1)
    total = g.op("ReduceSum", b.dy, g.constant([axis]), keepdims=1)
    return [g.op("Sub", b.dy, g.op("Mul", _probabilities(b), total))]


RULES = {
    ("", "LayerNormalization"): Rule(_layer_norm_backward, _layer_norm_forward, extra_outputs),
    ("", "Softmax"): Rule(_softmax_backward, _softmax_forward),
    ("", "LogSoftmax"): Rule(_log_softmax_backward, _log_softmax_forward),
}
