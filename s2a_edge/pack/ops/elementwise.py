"""Elementwise arithmetic with numpy broadcasting.

A product with a frozen operand saves nothing; a product of two activations saves both.
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of
from s2a_edge.pack.ops.linear import at_hand
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    factor_kind,
    is_constant,
    scalar,
    sum_to,
)


def _save_for_product(f: Forward) -> tuple[ir.Value, ...]:
    for index, other, key in ((0, 1, "b"), (1, 0, "a")):
        if f.needs[index] and not at_hand(f.node.inputs[other]):
            f.save(key, f.x(other), factor_kind(f.x(other), f.x(index)))
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


def _number(value: ir.Value | None) -> float | None:
    """The number in a constant of one element."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def _pow_forward(f: Forward) -> tuple[ir.Value, ...]:
    f.save("x", f.x(0), "activation")
    if not at_hand(f.node.inputs[1]):
        f.save("p", f.x(1), "activation")
    outputs = f.emit()
    if f.needs[1]:
        f.save("y", outputs[0], "activation")
    return outputs


def _pow(b: Backward) -> Gradients:
    # y = x^p: dx = dy p x^(p-1), dp = dy y log x
    g, x, number = b.g, b.saved("x"), _number(b.node.inputs[1])
    dx = dp = None
    if b.needs[0]:
        p = scalar(g, number, x) if number is not None else (
            b.weight(1) if at_hand(b.node.inputs[1]) else b.saved("p"))
        lower = scalar(g, number - 1.0, x) if number is not None \
            else g.op("Sub", p, scalar(g, 1.0, x))
        power = x if number == 2.0 else g.op("Pow", x, lower)
        dx = sum_to(g, g.op("Mul", g.op("Mul", b.dy, p), power), b.shape(0))
    if b.needs[1]:
        slope = g.op("Mul", b.saved("y"), g.op("Log", x))
        dp = sum_to(g, g.op("Mul", b.dy, slope), b.shape(1))
    return [dx, dp]


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


def _log(b: Backward) -> Gradients:
    return [b.g.op("Div", b.dy, b.saved("x"))]


def _sin(b: Backward) -> Gradients:
    return [b.g.op("Mul", b.dy, b.g.op("Cos", b.saved("x")))]


def _cos(b: Backward) -> Gradients:
    return [b.g.op("Neg", b.g.op("Mul", b.dy, b.g.op("Sin", b.saved("x"))))]


def save_signs(f: Forward, x: ir.Value) -> None:
    """Declares what :func:`sign` needs: two bits an element."""
    f.save("positive", x, "mask")
    f.save("negative", x, "mask:-inf:0.0")


def sign(b: Backward) -> ir.Value:
    """-1, 0 or 1, of the value that :func:`save_signs` has seen."""
    return b.g.op("Sub", b.saved("positive"), b.saved("negative"))


def _abs_forward(f: Forward) -> tuple[ir.Value, ...]:
    save_signs(f, f.x())
    return f.emit()


def _abs(b: Backward) -> Gradients:
    return [b.g.op("Mul", b.dy, sign(b))]


def _step(b: Backward) -> Gradients:
    # Constant almost everywhere.
    return [b.g.op("Expand", scalar(b.g, 0.0, b.dy), b.g.constant(list(b.shape(0))))]


def _sum(b: Backward) -> Gradients:
    factor = 1.0 if b.node.op_type == "Sum" else 1.0 / len(b.needs)
    dy = b.dy if factor == 1.0 else b.g.op("Mul", b.dy, scalar(b.g, factor, b.dy))
    return [sum_to(b.g, dy, b.shape(i)) if need else None for i, need in enumerate(b.needs)]


def _extremum_forward(f: Forward) -> tuple[ir.Value, ...]:
    outputs = f.emit()
    y = outputs[0]
    for index in range(len(f.inputs)):
        chosen = f.g.op("Cast", f.g.op("Equal", f.x(index), y), to=int(dtype_of(y)))
        f.save(f"chosen{index}", chosen, "mask")
    return outputs


def _extremum(b: Backward) -> Gradients:
    # All operands that are the maximum share the gradient, as in PyTorch.
    g = b.g
    chosen = [b.saved(f"chosen{i}") for i in range(len(b.needs))]
    total = chosen[0]
    for mask in chosen[1:]:
        total = g.op("Add", total, mask)
    share = g.op("Div", b.dy, total)
    return [sum_to(g, g.op("Mul", share, mask), b.shape(i)) if need else None
            for i, (mask, need) in enumerate(zip(chosen, b.needs, strict=True))]


def _where_forward(f: Forward) -> tuple[ir.Value, ...]:
    if not is_constant(f.node.inputs[0]):
        # Which branch is taken, as a number: masks are kept in one bit.
        kind = int(dtype_of(f.x(1)))
        f.save("condition", f.g.op("Cast", f.x(0), to=kind), "mask")
    return f.emit()


def _where(b: Backward) -> Gradients:
    g, dy = b.g, b.dy
    mask = (g.op("Cast", b.weight(0), to=int(dtype_of(dy))) if is_constant(b.node.inputs[0])
            else b.saved("condition"))
    grads: list[ir.Value | None] = [None] * 3
    if b.needs[1]:
        grads[1] = sum_to(g, g.op("Mul", dy, mask), b.shape(1))
    if b.needs[2]:
        rest = g.op("Sub", scalar(g, 1.0, mask), mask)
        grads[2] = sum_to(g, g.op("Mul", dy, rest), b.shape(2))
    return grads


RULES = {
    ("", "Add"): Rule(_add),
    ("", "Sub"): Rule(_sub),
    ("", "Mul"): Rule(_mul, _save_for_product),
    ("", "Div"): Rule(_div, _save_for_quotient),
    ("", "Neg"): Rule(_neg),
    ("", "Identity"): Rule(_same),
    ("", "Pow"): Rule(_pow, _pow_forward),
    ("", "Sqrt"): Rule(_sqrt, _save_output),
    ("", "Exp"): Rule(_exp, _save_output),
    ("", "Reciprocal"): Rule(_reciprocal, _save_output),
    ("", "Log"): Rule(_log, _save_base),
    ("", "Sin"): Rule(_sin, _save_base),
    ("", "Cos"): Rule(_cos, _save_base),
    ("", "Abs"): Rule(_abs, _abs_forward),
    ("", "Sum"): Rule(_sum),
    ("", "Mean"): Rule(_sum),
    ("", "Max"): Rule(_extremum, _extremum_forward),
    ("", "Min"): Rule(_extremum, _extremum_forward),
    ("", "Where"): Rule(_where, _where_forward),
    **{("", op): Rule(_step) for op in ("Sign", "Floor", "Ceil", "Round")},
}
