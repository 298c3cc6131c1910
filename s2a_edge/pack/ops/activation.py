"""Activations: what is kept is the derivative (as a code), or one bit where it is 0 or 1.

The derivative's range is fixed by the function, so its code needs no scales; keeping x instead
would cost more bits for the same gradient error (arXiv 2202.00441, few-bit backward).
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.rule import Backward, Forward, Gradients, Rule, constant_operands, scalar

# Smooth activations without attributes that change their derivative.
SMOOTH = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "HardSwish": "hardswish",
          "Softplus": "softplus", "Mish": "mish", "Softsign": "softsign"}


def _smooth(fn: str) -> Rule:
    def forward(f: Forward) -> tuple[ir.Value, ...]:
        f.save("derivative", f.x(), f"derivative:{fn}")
        return f.emit()

    return Rule(_times_derivative, forward)


def _times_derivative(b: Backward) -> Gradients:
    return [b.g.op("Mul", b.dy, b.saved("derivative")), *[None] * (len(b.needs) - 1)]


def _gelu_forward(f: Forward) -> tuple[ir.Value, ...]:
    tanh_form = f.node.attributes.get_string("approximate", "none") == "tanh"
    f.save("derivative", f.x(), "derivative:gelu_tanh" if tanh_form else "derivative:gelu")
    return f.emit()


def _relu_forward(f: Forward) -> tuple[ir.Value, ...]:
    outputs = f.emit()
    f.save("derivative", outputs[0], "mask")
    return outputs


def _clip_forward(f: Forward) -> tuple[ir.Value, ...]:
    # The derivative is 1 strictly inside [low, high]. One ramp decides: (x-low)(high-x) > 0.
    g = f.g
    x = f.x()
    inside = [g.op("Sub", x, f.x(1))] if len(f.inputs) > 1 and f.inputs[1] is not None else []
    if len(f.inputs) > 2 and f.inputs[2] is not None:
        inside.append(g.op("Sub", f.x(2), x))
    ramp = inside[0] if len(inside) == 1 else g.op("Min", *inside) if inside else None
    f.save("derivative", ramp if ramp is not None else g.op("Abs", x), "mask")
    return f.emit()


def _leaky_forward(f: Forward) -> tuple[ir.Value, ...]:
    f.save("mask", f.x(), "mask")
    return f.emit()


def _leaky_backward(b: Backward) -> Gradients:
    alpha = float(b.node.attributes.get_float("alpha", 0.01))
    # 1 where x > 0, alpha elsewhere: alpha + (1 - alpha) mask
    g, mask = b.g, b.saved("mask")
    slope = g.op("Add", g.op("Mul", mask, scalar(g, 1.0 - alpha, mask)), scalar(g, alpha, mask))
    return [g.op("Mul", b.dy, slope)]


def _hardsigmoid_forward(f: Forward) -> tuple[ir.Value, ...]:
    # The slope is alpha where 0 < y < 1.
    outputs = f.emit()
    y = outputs[0]
    f.save("mask", f.g.op("Mul", y, f.g.op("Sub", scalar(f.g, 1.0, y), y)), "mask")
    return outputs


def _hardsigmoid_backward(b: Backward) -> Gradients:
    alpha = float(b.node.attributes.get_float("alpha", 0.2))
    slope = b.g.op("Mul", b.saved("mask"), scalar(b.g, alpha, b.dy))
    return [b.g.op("Mul", b.dy, slope)]


RULES = {
    **{("", op): _smooth(fn) for op, fn in SMOOTH.items()},
    ("", "Gelu"): Rule(_times_derivative, _gelu_forward),
    ("", "Relu"): Rule(_times_derivative, _relu_forward),
    ("", "Clip"): Rule(_times_derivative, _clip_forward, constant_operands(1, 2)),
    ("", "LeakyRelu"): Rule(_leaky_backward, _leaky_forward),
    ("", "HardSigmoid"): Rule(_hardsigmoid_backward, _hardsigmoid_forward),
}
