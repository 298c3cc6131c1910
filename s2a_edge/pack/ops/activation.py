"""Activations: what is kept is the derivative (as a code), or one bit where it has two values.

The derivative's range is fixed by the function, so its code needs no scales; keeping x instead
would cost more bits for the same gradient error (arXiv 2202.00441, few-bit backward).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import MICROSOFT
from s2a_edge.pack.ops.linear import at_hand
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    constant_operands,
    scalar,
    sum_to,
)

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


def _times(g: GraphBuilder, value: ir.Value, factor: float) -> ir.Value:
    return value if factor == 1.0 else g.op("Mul", value, scalar(g, factor, value))


def _float(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes.get_float(name, default))


def _gelu_forward(f: Forward) -> tuple[ir.Value, ...]:
    tanh_form = f.node.attributes.get_string("approximate", "none") == "tanh"
    f.save("derivative", f.x(), "derivative:gelu_tanh" if tanh_form else "derivative:gelu")
    return f.emit()


def _quick_gelu_forward(f: Forward) -> tuple[ir.Value, ...]:
    # y = x σ(αx) = silu(αx) / α, so y' = silu'(αx)
    f.save("derivative", _times(f.g, f.x(), _float(f.node, "alpha", 1.702)), "derivative:silu")
    return f.emit()


def _relu_forward(f: Forward) -> tuple[ir.Value, ...]:
    outputs = f.emit()
    f.save("derivative", outputs[0], "mask")
    return outputs


def _thresholded_relu_forward(f: Forward) -> tuple[ir.Value, ...]:
    f.save("derivative", f.x(), f"mask:{_float(f.node, 'alpha', 1.0)}:inf")
    return f.emit()


def _bound(node: ir.Node, index: int, otherwise: float) -> float:
    value = node.inputs[index] if index < len(node.inputs) else None
    return otherwise if value is None or value.const_value is None \
        else float(value.const_value.numpy().reshape(()))


def _clip_forward(f: Forward) -> tuple[ir.Value, ...]:
    # The derivative is 1 strictly between the bounds, where y = x.
    low, high = _bound(f.node, 1, -math.inf), _bound(f.node, 2, math.inf)
    outputs = f.emit()
    f.save("derivative", outputs[0], f"mask:{low}:{high}")
    return outputs


def _positive_forward(f: Forward) -> tuple[ir.Value, ...]:
    f.save("mask", f.x(), "mask")
    return f.emit()


def _leaky_backward(b: Backward) -> Gradients:
    # 1 where x > 0, alpha elsewhere: alpha + (1 - alpha) mask
    g, mask, alpha = b.g, b.saved("mask"), _float(b.node, "alpha", 0.01)
    slope = g.op("Add", _times(g, mask, 1.0 - alpha), scalar(g, alpha, mask))
    return [g.op("Mul", b.dy, slope)]


def _prelu_forward(f: Forward) -> tuple[ir.Value, ...]:
    if f.needs[0]:
        f.save("mask", f.x(), "mask")
    if f.needs[0] and not at_hand(f.node.inputs[1]):
        f.save("slope", f.x(1), "activation")
    if f.needs[1]:
        f.save("negative", f.g.op("Min", f.x(), scalar(f.g, 0.0, f.x())), "activation")
    return f.emit()


def _prelu_backward(b: Backward) -> Gradients:
    # y = x where x > 0, a x elsewhere: dx = dy (mask + a (1 - mask)), da = Σ dy min(x, 0)
    g = b.g
    dx = da = None
    if b.needs[0]:
        slope = b.weight(1) if at_hand(b.node.inputs[1]) else b.saved("slope")
        mask = b.saved("mask")
        rest = g.op("Mul", slope, g.op("Sub", scalar(g, 1.0, mask), mask))
        dx = g.op("Mul", b.dy, g.op("Add", mask, rest))
    if b.needs[1]:
        da = sum_to(g, g.op("Mul", b.dy, b.saved("negative")), b.shape(1))
    return [dx, da]


def _elu_parameters(node: ir.Node) -> tuple[float, float, float]:
    """(a, c, s) of y = s x where x > 0, s a (exp(x / c) - 1) elsewhere."""
    if node.op_type == "Celu":  # alpha (exp(x / alpha) - 1)
        alpha = _float(node, "alpha", 1.0)
        return alpha, alpha, 1.0
    if node.op_type == "Selu":
        return (_float(node, "alpha", 1.67326319217681884765625), 1.0,
                _float(node, "gamma", 1.05070102214813232421875))
    return _float(node, "alpha", 1.0), 1.0, 1.0


def _elu_forward(f: Forward) -> tuple[ir.Value, ...]:
    a, c, _ = _elu_parameters(f.node)
    f.save("derivative", _times(f.g, f.x(), 1.0 / c), "derivative:elu")
    if a != c:  # the derivative jumps at 0
        f.save("mask", f.x(), "mask")
    return f.emit()


def _elu_backward(b: Backward) -> Gradients:
    # d = exp(min(x / c, 0)): y' = s (a/c) d where x < 0, s elsewhere, where d = 1
    g, (a, c, s) = b.g, _elu_parameters(b.node)
    slope = _times(g, b.saved("derivative"), s * a / c)
    if a != c:
        slope = g.op("Add", slope, _times(g, b.saved("mask"), s * (1.0 - a / c)))
    return [g.op("Mul", b.dy, slope)]


def _hardsigmoid_forward(f: Forward) -> tuple[ir.Value, ...]:
    # The slope is alpha where 0 < y < 1.
    outputs = f.emit()
    f.save("mask", outputs[0], "mask:0.0:1.0")
    return outputs


def _hardsigmoid_backward(b: Backward) -> Gradients:
    slope = _times(b.g, b.saved("mask"), _float(b.node, "alpha", 0.2))
    return [b.g.op("Mul", b.dy, slope)]


RULES = {
    **{("", op): _smooth(fn) for op, fn in SMOOTH.items()},
    ("", "Gelu"): Rule(_times_derivative, _gelu_forward),
    (MICROSOFT, "QuickGelu"): Rule(_times_derivative, _quick_gelu_forward),
    ("", "Relu"): Rule(_times_derivative, _relu_forward),
    ("", "ThresholdedRelu"): Rule(_times_derivative, _thresholded_relu_forward),
    ("", "Clip"): Rule(_times_derivative, _clip_forward, constant_operands(1, 2)),
    ("", "LeakyRelu"): Rule(_leaky_backward, _positive_forward),
    ("", "PRelu"): Rule(_prelu_backward, _prelu_forward),
    ("", "Elu"): Rule(_elu_backward, _elu_forward),
    ("", "Celu"): Rule(_elu_backward, _elu_forward),
    ("", "Selu"): Rule(_elu_backward, _elu_forward),
    ("", "HardSigmoid"): Rule(_hardsigmoid_backward, _hardsigmoid_forward),
}
