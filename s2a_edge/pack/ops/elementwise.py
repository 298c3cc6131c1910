"""Elementwise arithmetic with numpy broadcasting.

A product with a frozen operand saves nothing; a product of two activations saves both.
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.ops.linear import at_hand
from s2a_edge.pack.rule import Backward, Forward, Gradients, Rule, scalar, sum_to


def _save_for_product(f: Forward) -> tuple[ir.Value, ...]:
    for index, other, key in ((0, 1, "b"), (1, 0, "a")):
        if f.needs[index] and not at_hand(f.node.inputs[other]):
            f.save(key, f.x(other), "activation")
    return f.emit()


def _other(b: Backward, index: int) -> ir.Value:
    return b.weight(index) if at_hand(b.node.inputs[index]) else b.saved("ab"[index])


def _add(b: Backward) -> Gradients:
    return [sum_to(b.g, b.dy, b.shape(i)) if need else None for i, need in enumerate(b.needs)]


def _sub(b: Backward) -> Gradients:
    left = sum_to(b.g, b.dy, b.shape(0)) if b.needs[0] else None
    right = b.g.op("Neg", sum_to(b.g, b.dy, b.shape(1))) if b.needs[1] else None
    return [left, right]


def _mul(b: Backward) -> Gradients:
    return [sum_to(b.g, b.g.op("Mul", b.dy, _other(b, 1 - i)), b.shape(i)) if need else None
            for i, need in enumerate(b.needs)]


def _save_for_quotient(f: Forward) -> tuple[ir.Value, ...]:
    if not at_hand(f.node.inputs[1]):
        f.save("b", f.x(1), "activation")
    if f.needs[1] and not at_hand(f.node.inputs[0]):
        f.save("a", f.x(0), "activation")
    return f.emit()


def _div(b: Backward) -> Gradients:
    # y = a / b: da = dy / b, db = -dy a / b²
    divisor = _other(b, 1)
    quotient = b.g.op("Div", b.dy, divisor)
    da = sum_to(b.g, quotient, b.shape(0)) if b.needs[0] else None
    db = None
    if b.needs[1]:
        scaled = b.g.op("Div", b.g.op("Mul", quotient, _other(b, 0)), divisor)
        db = sum_to(b.g, b.g.op("Neg", scaled), b.shape(1))
    return [da, db]


def _neg(b: Backward) -> Gradients:
    return [b.g.op("Neg", b.dy)]


def _same(b: Backward) -> Gradients:
    return [b.dy]


def _save_base(f: Forward) -> tuple[ir.Value, ...]:
    f.save("x", f.x(0), "activation")
    return f.emit()


def _pow(b: Backward) -> Gradients:
    # y = x^p with a constant p: dx = dy p x^(p-1)
    p = float(b.constant(1).reshape(-1)[0])
    x = b.saved("x")
    power = x if p == 2.0 else b.g.op("Pow", x, scalar(b.g, p - 1.0, x))
    return [b.g.op("Mul", b.g.op("Mul", b.dy, scalar(b.g, p, b.dy)), power), None]


def _pow_refuses(node: ir.Node) -> str | None:
    x, power = node.inputs[0], node.inputs[1]
    if x is None or power is None or power.const_value is None or power.const_value.size != 1:
        return "an exponent that is no constant number"
    return None if shape_of(x) == shape_of(node.outputs[0]) else "an exponent of a higher rank"


def _save_output(f: Forward) -> tuple[ir.Value, ...]:
    outputs = f.emit()
    f.save("y", outputs[0], "activation")
    return outputs


def _sqrt(b: Backward) -> Gradients:
    # y = √x: dx = dy / 2y
    return [b.g.op("Div", b.g.op("Mul", b.dy, scalar(b.g, 0.5, b.dy)), b.saved("y"))]


def _exp(b: Backward) -> Gradients:
    return [b.g.op("Mul", b.dy, b.saved("y"))]


def _reciprocal(b: Backward) -> Gradients:
    # y = 1/x: dx = -dy y²
    y = b.saved("y")
    return [b.g.op("Neg", b.g.op("Mul", b.g.op("Mul", b.dy, y), y))]


RULES = {
    ("", "Add"): Rule(_add),
    ("", "Sub"): Rule(_sub),
    ("", "Mul"): Rule(_mul, _save_for_product),
    ("", "Div"): Rule(_div, _save_for_quotient),
    ("", "Neg"): Rule(_neg),
    ("", "Identity"): Rule(_same),
    ("", "Pow"): Rule(_pow, _save_base, _pow_refuses),
    ("", "Sqrt"): Rule(_sqrt, _save_output),
    ("", "Exp"): Rule(_exp, _save_output),
    ("", "Reciprocal"): Rule(_reciprocal, _save_output),
}
