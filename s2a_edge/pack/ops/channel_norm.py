"""Norms over maps [N, C, ...]: frozen batch normalization and group normalization."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    constant_operands,
    extra_outputs,
    int_attribute,
    is_constant,
    reshape,
    scalar,
)


def _per_channel(g: GraphBuilder, value: ir.Value, rank: int) -> ir.Value:
    """[C] -> [C, 1, ...], to multiply maps [N, C, ...] of ``rank`` with."""
    return reshape(g, value, (shape_of(value)[0], *[1] * (rank - 2)))


def _over_maps(b: Backward, value: ir.Value) -> ir.Value:
    """[N, C, ...] summed to [C]."""
    return b.g.op("ReduceSum", value, b.g.constant([0, *range(2, len(b.shape(0)))]), keepdims=0)


def _batch_norm_refuses(node: ir.Node) -> str | None:
    if int_attribute(node, "training_mode", 0):
        return "statistics of the batch"
    return constant_operands(3, 4)(node) or extra_outputs(node)


def _batch_norm_forward(f: Forward) -> tuple[ir.Value, ...]:
    if f.needs[1]:
        f.save("x", f.x(), "activation")
    return f.emit()


def _batch_norm_backward(b: Backward) -> Gradients:
    # Frozen statistics make it affine: y = (x - m) γ/σ + β, so dx = dy γ/σ, dγ = Σ dy (x - m)/σ
    g, rank = b.g, len(b.shape(0))
    inverse = 1.0 / np.sqrt(b.constant(4) + b.node.attributes.get_float("epsilon", 1e-5))
    inverse = inverse.astype(b.constant(4).dtype)
    grads: list[ir.Value | None] = [None] * len(b.needs)
    total = _over_maps(b, b.dy) if b.needs[1] or b.needs[2] else None
    grads[2] = total if b.needs[2] else None
    if b.needs[1]:
        assert total is not None
        along = _over_maps(b, g.op("Mul", b.dy, b.saved("x")))
        centred = g.op("Sub", along, g.op("Mul", total, b.weight(3)))
        grads[1] = g.op("Mul", centred, g.constant(inverse))
    if b.needs[0]:
        slope = (g.constant(b.constant(1) * inverse) if is_constant(b.node.inputs[1])
                 else g.op("Mul", b.weight(1), g.constant(inverse)))
        grads[0] = g.op("Mul", b.dy, _per_channel(g, slope, rank))
    return grads


def affine_maps(g: GraphBuilder, x: ir.Value, scale: ir.Value, bias: ir.Value) -> ir.Value:
    """x [N, C, ...] · scale [C] + bias [C] in one pass: BatchNormalization of no statistics."""
    channels = shape_of(scale)[0]
    kind = dtype_of(x).numpy()
    zeros, ones = (g.constant(np.full(channels, v, kind)) for v in (0.0, 1.0))
    return g.op("BatchNormalization", x, scale, bias, zeros, ones, epsilon=0.0)


def _rows(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """[N, C, ...] as (N, groups, the rest of a group)."""
    groups = int_attribute(node, "num_groups", 1)
    return shape[0], groups, math.prod(shape[1:]) // groups


def _group_norm_forward(f: Forward) -> tuple[ir.Value, ...]:
    # A group is a row; scale and offset are per channel and come after. Ones are made at run time:
    # as a constant they would be as large as a group.
    g, x = f.g, f.x()
    rows = _rows(f.node, shape_of(x))
    ones = g.op("Expand", scalar(g, 1.0, x), g.constant([rows[2]]))
    x_hat, mean, inverse_deviation = g.multi(
        "LayerNormalization", [reshape(g, x, rows), ones], 3, axis=-1,
        epsilon=f.node.attributes.get_float("epsilon", 1e-5))
    mean.name = ""  # not computed: an output that nobody reads would stay until the run ends
    maps = reshape(g, x_hat, shape_of(x))
    if f.needs[0] or f.needs[1]:
        f.save("x_hat", maps, "normalized")
    if f.needs[0]:
        if dtype_of(inverse_deviation) != dtype_of(x):  # the operator's statistics are float32
            inverse_deviation = g.op("Cast", inverse_deviation, to=int(dtype_of(x)))
        f.save("inverse_deviation", inverse_deviation, "exact")
    return (f.rename(affine_maps(g, maps, f.x(1), f.x(2))),)


def _group_norm_backward(b: Backward) -> Gradients:
    # y = x̂ γ + β, u = dy γ, means over a group: dx = (u - mean(u) - x̂ mean(u x̂)) / σ
    # (arXiv 1803.08494)
    g, dy, shape = b.g, b.dy, b.shape(0)
    grads: list[ir.Value | None] = [None] * 3
    if b.needs[2]:
        grads[2] = _over_maps(b, dy)
    if b.needs[1]:
        grads[1] = _over_maps(b, g.op("Mul", dy, b.saved("x_hat")))
    if b.needs[0]:
        rows, last = _rows(b.node, shape), g.constant([-1])
        u = reshape(g, g.op("Mul", dy, _per_channel(g, b.weight(1), len(shape))), rows)
        x_hat = reshape(g, b.saved("x_hat"), rows)
        along = g.op("ReduceMean", g.op("Mul", u, x_hat), last, keepdims=1)
        centred = g.op("Sub", u, g.op("ReduceMean", u, last, keepdims=1))
        rest = g.op("Sub", centred, g.op("Mul", x_hat, along))
        grads[0] = reshape(g, g.op("Mul", rest, b.saved("inverse_deviation")), shape)
    return grads


RULES = {
    ("", "BatchNormalization"): Rule(_batch_norm_backward, _batch_norm_forward,
                                     _batch_norm_refuses),
    ("", "GroupNormalization"): Rule(_group_norm_backward, _group_norm_forward),
}
