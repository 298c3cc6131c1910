"""Norms of a row without its mean: RMSNorm and x / |x|, spelled in small operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.normalize.layer_norm import (
    mean_source,
    under_reciprocal_sqrt,
    under_sqrt,
)
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

# Above it, the least length that a row is divided by is no guard against 0 but part of the model.
_GUARD = 1e-6


def fuse_row_norms(graph: ir.Graph) -> None:
    """x / max(|x|, tiny) -> LpNormalization; x / sqrt(mean(x²) + eps) * w -> RMSNormalization.

    The lengths may be expanded before the division; the rows of RMSNorm lie along the last axis.
    """
    for node in list(graph):
        if node.graph is None or node.op_type not in ("Div", "Mul"):
            continue
        axis = _unit_axis(node)
        if axis is not None:
            new = insert(graph, node, "LpNormalization", [operands(node)[0]],
                         {"axis": axis, "p": 2}, name=f"{node.outputs[0].name}_unit")
            replace(graph, node.outputs[0], new)
            continue
        found = _rms(node)
        if found is not None:
            _fuse_rms(graph, node, *found)


def _unit_axis(node: ir.Node) -> int | None:
    """The axis along which ``node`` divides x by its own length."""
    if node.op_type != "Div":
        return None
    x, length = operands(node)
    expand = producer(length, "Expand")
    guard = producer(expand.inputs[0] if expand is not None else length, "Clip", "Max")
    if guard is None or (len(guard.inputs) > 2 and guard.inputs[2] is not None):
        return None
    tiny = scalar_of(guard.inputs[1])
    norm = producer(guard.inputs[0], "ReduceL2")
    if norm is None or norm.inputs[0] is not x or tiny is None or not 0 <= tiny <= _GUARD:
        return None
    axes = array_of(norm.inputs[1]) if len(norm.inputs) > 1 else None
    if axes is None or axes.size != 1 or not norm.attributes.get_int("keepdims", 1):
        return None
    return int(axes.reshape(())) % len(shape_of(x))


def _rms(node: ir.Node) -> tuple[ir.Value, float] | None:
    """x and epsilon, if ``node`` computes x / sqrt(mean(x²) + eps)."""
    a, b = operands(node)
    if node.op_type == "Div":
        pairs = [(a, under_sqrt(b))]
    else:
        pairs = [(a, under_reciprocal_sqrt(b)), (b, under_reciprocal_sqrt(a))]
    for x, mean_square in pairs:
        total = producer(mean_square, "Add")
        split = split_scalar(total) if total is not None else None
        square = producer(mean_source(split[0]), "Pow", "Mul") if split is not None else None
        if split is None or square is None:
            continue
        base, other = operands(square)
        if base is x and (other is x if square.op_type == "Mul" else scalar_of(other) == 2.0):
            return x, split[1]
    return None


def _fuse_rms(graph: ir.Graph, node: ir.Node, x: ir.Value, epsilon: float) -> None:
    last, size = node, shape_of(x)[-1]
    weight: ir.Value | None = None
    after = only_consumer(node.outputs[0])
    if after is not None and after.op_type == "Mul":
        a, b = operands(after)
        other = b if a is node.outputs[0] else a
        if other.const_value is not None and shape_of(other) == (size,):
            last, weight = after, other
    if weight is None:
        weight = add_constant(graph, f"{module_of(node)}.weight", np.ones(size, np.float32))
    new = insert(graph, last, "RMSNormalization", [x, weight], {"axis": -1, "epsilon": epsilon},
                 name=f"{last.outputs[0].name}_fused")
    replace(graph, last.outputs[0], new)
