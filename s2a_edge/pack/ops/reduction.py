"""Reductions: sums and means save nothing."""

from __future__ import annotations

import math

import onnx_ir as ir

from s2a_edge.pack.rule import Backward, Gradients, Rule, int_attribute, reshape, scalar


def _axes(b: Backward) -> list[int]:
    rank = len(b.shape(0))
    if len(b.node.inputs) > 1 and b.node.inputs[1] is not None:
        axes = [int(a) % rank for a in b.constant(1).reshape(-1)]
        if axes:
            return axes
    if int_attribute(b.node, "noop_with_empty_axes", 0):
        return []
    return list(range(rank))


def _spread_back(b: Backward, value: ir.Value) -> ir.Value:
    kept = list(b.shape(0))
    for axis in _axes(b):
        kept[axis] = 1
    return b.g.op("Expand", reshape(b.g, value, kept), b.g.constant(list(b.shape(0))))


def _reduce_sum(b: Backward) -> Gradients:
    return [_spread_back(b, b.dy), *[None] * (len(b.needs) - 1)]


def _scaled(b: Backward, count: int) -> ir.Value:
    return b.g.op("Mul", b.dy, scalar(b.g, 1.0 / count, b.dy))


def _reduce_mean(b: Backward) -> Gradients:
    # Scaled while it is small, then spread.
    count = math.prod(b.shape(0)[a] for a in _axes(b))
    return [_spread_back(b, _scaled(b, count)), *[None] * (len(b.needs) - 1)]


def _global_average_pool(b: Backward) -> Gradients:
    small = _scaled(b, math.prod(b.shape(0)[2:]))
    return [b.g.op("Expand", small, b.g.constant(list(b.shape(0))))]


RULES = {
    ("", "ReduceSum"): Rule(_reduce_sum),
    ("", "ReduceMean"): Rule(_reduce_mean),
    ("", "GlobalAveragePool"): Rule(_global_average_pool),
}
