"""Reductions: sums and means save nothing, maxima one bit an element, norms their operand."""

from __future__ import annotations

import math

import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.ops.elementwise import save_signs, sign
from s2a_edge.pack.rule import Backward, Forward, Gradients, Rule, int_attribute, reshape, scalar

# Keeps the gradient of a norm finite where the norm is 0; PyTorch takes 0 there, and so do we: x is
# 0 too.
_LEAST_NORM = 1e-30


def _axes(b: Backward) -> list[int]:
    rank = len(b.shape(0))
    if len(b.node.inputs) > 1 and b.node.inputs[1] is not None:
        axes = [int(a) % rank for a in b.constant(1).reshape(-1)]
        if axes:
            return axes
    if int_attribute(b.node, "noop_with_empty_axes", 0):
        return []
    return list(range(rank))


def _kept(b: Backward, value: ir.Value) -> ir.Value:
    """A value of the output's shape with its reduced axes kept, each of size 1."""
    shape = list(b.shape(0))
    for axis in _axes(b):
        shape[axis] = 1
    return reshape(b.g, value, shape)


def _spread_back(b: Backward, value: ir.Value) -> ir.Value:
    return b.g.op("Expand", _kept(b, value), b.g.constant(list(b.shape(0))))


def _only(b: Backward, dx: ir.Value) -> Gradients:
    return [dx, *[None] * (len(b.needs) - 1)]


def _reduce_sum(b: Backward) -> Gradients:
    return _only(b, _spread_back(b, b.dy))


def _scaled(b: Backward, count: int) -> ir.Value:
    return b.g.op("Mul", b.dy, scalar(b.g, 1.0 / count, b.dy))


def _reduce_mean(b: Backward) -> Gradients:
    # Scaled while it is small, then spread.
    count = math.prod(b.shape(0)[a] for a in _axes(b))
    return _only(b, _spread_back(b, _scaled(b, count)))


def _global_average_pool(b: Backward) -> Gradients:
    small = _scaled(b, math.prod(b.shape(0)[2:]))
    return [b.g.op("Expand", small, b.g.constant(list(b.shape(0))))]


def _extremum_forward(f: Forward) -> tuple[ir.Value, ...]:
    # Kept for the comparison with x; the output itself follows from it.
    g, x = f.g, f.x()
    if int_attribute(f.node, "keepdims", 1):
        outputs = f.emit()
        kept = outputs[0]
    else:
        kept = g.op(f.node.op_type, *f.inputs, keepdims=1,
                    noop_with_empty_axes=int_attribute(f.node, "noop_with_empty_axes", 0))
        outputs = (f.rename(reshape(g, kept, shape_of(f.node.outputs[0]))),)
    f.save("chosen", g.op("Cast", g.op("Equal", x, kept), to=int(dtype_of(x))), "mask")
    return outputs


def _extremum(b: Backward) -> Gradients:
    # All elements that are the maximum share the gradient, as in PyTorch's amax.
    g, chosen = b.g, b.saved("chosen")
    ties = g.op("ReduceSum", chosen, g.constant(_axes(b)), keepdims=1)
    return _only(b, g.op("Mul", chosen, g.op("Div", _kept(b, b.dy), ties)))


def _l1_forward(f: Forward) -> tuple[ir.Value, ...]:
    save_signs(f, f.x())
    return f.emit()


def _l1(b: Backward) -> Gradients:
    return _only(b, b.g.op("Mul", sign(b), _kept(b, b.dy)))


def _save_operand(f: Forward) -> tuple[ir.Value, ...]:
    f.save("x", f.x(), "activation")
    return f.emit()


def _save_both(f: Forward) -> tuple[ir.Value, ...]:
    f.save("x", f.x(), "activation")
    outputs = f.emit()
    f.save("y", outputs[0], "exact")
    return outputs


def _l2(b: Backward) -> Gradients:
    # y = sqrt(sum x^2): dx = x dy / y
    g = b.g
    norm = g.op("Max", b.saved("y"), scalar(g, _LEAST_NORM, b.dy))
    return _only(b, g.op("Mul", b.saved("x"), _kept(b, g.op("Div", b.dy, norm))))


def _sum_square(b: Backward) -> Gradients:
    double = b.g.op("Mul", b.dy, scalar(b.g, 2.0, b.dy))
    return _only(b, b.g.op("Mul", b.saved("x"), _kept(b, double)))


def _log_sum_exp(b: Backward) -> Gradients:
    # y = log sum exp(x): dx = dy exp(x - y)
    g = b.g
    share = g.op("Exp", g.op("Sub", b.saved("x"), _kept(b, b.saved("y"))))
    return _only(b, g.op("Mul", share, _kept(b, b.dy)))


RULES = {
    ("", "ReduceSum"): Rule(_reduce_sum),
    ("", "ReduceMean"): Rule(_reduce_mean),
    ("", "ReduceMax"): Rule(_extremum, _extremum_forward),
    ("", "ReduceMin"): Rule(_extremum, _extremum_forward),
    ("", "ReduceL1"): Rule(_l1, _l1_forward),
    ("", "ReduceL2"): Rule(_l2, _save_both),
    ("", "ReduceSumSquare"): Rule(_sum_square, _save_operand),
    ("", "ReduceLogSumExp"): Rule(_log_sum_exp, _save_both),
    ("", "GlobalAveragePool"): Rule(_global_average_pool),
}
