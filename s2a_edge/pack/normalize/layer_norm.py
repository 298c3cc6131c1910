"""LayerNorm spelled in small operators becomes LayerNormalization over the last axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.normalize.rewrite import (
    add_constant,
    array_of,
    insert,
    only_consumer,
    operands,
    producer,
    replace,
    scalar_of,
    split_scalar,
)


def fuse_layer_norms(graph: ir.Graph) -> None:
    """(x - mean) / sqrt(var + eps) [* weight] [+ bias] -> LayerNormalization(axis=-1).

    The square may be Pow(d, 2) or d * d, the division Div, or Mul by Reciprocal or by
    Pow(., -0.5); weight and bias are constants of shape [D].
    """
    for node in list(graph):
        if node.graph is None or node.op_type not in ("Div", "Mul"):
            continue
        match = _normalized(node)
        if match is not None:
            _fuse(graph, node, *match)


def _normalized(node: ir.Node) -> tuple[ir.Value, float] | None:
    """x and epsilon, if ``node`` computes (x - mean(x)) / sqrt(var(x) + eps)."""
    a, b = operands(node)
    if node.op_type == "Div":
        pairs = [(a, under_sqrt(b))]
    else:
        pairs = [(a, under_reciprocal_sqrt(b)), (b, under_reciprocal_sqrt(a))]
    for deviation, variance in pairs:
        x = _centered(deviation)
        epsilon = _variance_epsilon(variance, x) if x is not None else None
        if x is not None and epsilon is not None:
            return x, epsilon
    return None


def under_sqrt(value: ir.Value) -> ir.Value | None:
    """v, if ``value`` is √v."""
    root = producer(value, "Sqrt")
    if root is not None:
        return root.inputs[0]
    power = producer(value, "Pow")
    return power.inputs[0] if power is not None and scalar_of(power.inputs[1]) == 0.5 else None


def under_reciprocal_sqrt(value: ir.Value) -> ir.Value | None:
    """v, if ``value`` is 1/√v."""
    node = producer(value, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Pow":
        return node.inputs[0] if scalar_of(node.inputs[1]) == -0.5 else None
    below = node.inputs[0]
    if node.op_type == "Div":
        one, below = operands(node)
        if scalar_of(one) != 1.0:
            return None
    return under_sqrt(below) if below is not None else None


def _centered(value: ir.Value | None) -> ir.Value | None:
    """x, if ``value`` is x - mean(x) over the last axis."""
    sub = producer(value, "Sub")
    if sub is None:
        return None
    x, mean = operands(sub)
    return x if mean_source(mean) is x else None


def mean_source(value: ir.Value | None) -> ir.Value | None:
    """x, if ``value`` is ReduceMean(x) over the last axis, kept."""
    node = producer(value, "ReduceMean")
    if node is None or not node.attributes.get_int("keepdims", 1):
        return None
    x = node.inputs[0]
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if x is None or axes is None or axes.size != 1:
        return None
    return x if int(axes.reshape(())) in (-1, len(shape_of(x)) - 1) else None


def _variance_epsilon(value: ir.Value | None, x: ir.Value) -> float | None:
    """Epsilon, if ``value`` is mean((x - mean(x))^2) + epsilon."""
    total = producer(value, "Add")
    split = split_scalar(total) if total is not None else None
    if split is None:
        return None
    variance, epsilon = split
    square = producer(mean_source(variance), "Pow", "Mul")
    if square is None:
        return None
    d, other = operands(square)
    squares = other is d if square.op_type == "Mul" else scalar_of(other) == 2.0
    return epsilon if squares and _centered(d) is x else None


def _fuse(graph: ir.Graph, node: ir.Node, x: ir.Value, epsilon: float) -> None:
    size = shape_of(x)[-1]
    last = node
    weight = bias = None
    scaled = _affine(last, "Mul", size)
    if scaled is not None:
        last, weight = scaled
    shifted = _affine(last, "Add", size)
    if shifted is not None:
        last, bias = shifted
    if weight is None:
        weight = add_constant(graph, f"{module_of(node)}.weight", np.ones(size, np.float32))
    inputs = [x, _flat(graph, weight, size)]
    if bias is not None:
        inputs.append(_flat(graph, bias, size))
    new = insert(graph, last, "LayerNormalization", list(inputs),
                 {"axis": -1, "epsilon": epsilon}, name=f"{last.outputs[0].name}_fused")
    replace(graph, last.outputs[0], new)


def _affine(node: ir.Node, op_type: str, size: int) -> tuple[ir.Node, ir.Value] | None:
    """The only reader of ``node``, if it is ``op_type`` with a constant of ``size`` channels."""
    out = node.outputs[0]
    after = only_consumer(out)
    if after is None or after.op_type != op_type:
        return None
    a, b = operands(after)
    constant = b if a is out else a
    if constant.const_value is None or constant.const_value.size != size:
        return None
    return (after, constant) if shape_of(constant)[-1:] == (size,) else None


def _flat(graph: ir.Graph, value: ir.Value, size: int) -> ir.Value:
    """``value`` as [size]."""
    if shape_of(value) == (size,):
        return value
    array = array_of(value)
    assert array is not None
    return add_constant(graph, f"{value.name}_flat", array.reshape(size))
