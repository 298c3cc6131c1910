"""Drops nodes that change nothing, and merges chains of Reshape and Transpose."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize.rewrite import (
    add_constant,
    array_of,
    insert,
    only_consumer,
    operands,
    producer,
    remove_dead,
    replace,
    scalar_of,
)

_SHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def drop_no_ops(graph: ir.Graph) -> None:
    """Removes Identity, inference Dropout, casts to the same type, x + 0, x * 1 and the like."""
    for node in list(graph):
        if node.graph is None:
            continue
        if node.op_type == "Where":
            _drop_decided(graph, node)
            continue
        if _is_no_op(node):
            source = node.inputs[0]
            swapped = node.op_type in ("Add", "Mul") and source is not None
            if swapped and source is not None and source.const_value is not None:
                source = node.inputs[1]
            assert source is not None
            replace(graph, node.outputs[0], source)


def _drop_decided(graph: ir.Graph, node: ir.Node) -> None:
    """Where with a constant condition that is the same everywhere."""
    condition = array_of(node.inputs[0])
    if condition is None or not (condition.all() or not condition.any()):
        return
    chosen = node.inputs[1 if condition.all() else 2]
    if chosen is not None and chosen.shape == node.outputs[0].shape:
        replace(graph, node.outputs[0], chosen)


def _is_no_op(node: ir.Node) -> bool:
    out, source = node.outputs[0], node.inputs[0] if node.inputs else None
    if source is None or (source.is_graph_input() and out.is_graph_output()):
        return False
    same = source.dtype == out.dtype and source.shape == out.shape
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        mask = len(node.outputs) > 1 and bool(node.outputs[1].uses())
        return not mask and (training is None or scalar_of(training) == 0)
    if node.op_type in ("Expand", "Tile"):  # of a constant: as in the graphs of larger batches
        return same and source.const_value is None
    if node.op_type in ("Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return same
    if node.op_type == "Pad":
        return _is_filled_with(node.inputs[1], 0)
    if node.op_type == "Slice":  # the shape alone would not tell a reversal
        steps = node.inputs[4] if len(node.inputs) > 4 else None
        return same and (steps is None or _is_filled_with(steps, 1))
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm")
        return perm is not None and list(perm) == sorted(perm)
    if node.op_type in ("Concat", "Sum", "Max", "Min"):
        return len(node.inputs) == 1
    return _is_neutral(node)


def _is_neutral(node: ir.Node) -> bool:
    """x + 0, 0 + x, x - 0, x * 1, 1 * x, x / 1, with a scalar that does not broadcast x.

    Only before a softmax, 0 may have any shape: a mask that masks nothing. Elsewhere zeros are a
    bias that is still to be trained.
    """
    neutral = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}.get(node.op_type)
    if neutral is None:
        return False
    a, b = operands(node)
    pairs = ((a, b), (b, a)) if node.op_type in ("Add", "Mul") else ((a, b),)
    reader = only_consumer(node.outputs[0])
    masks = reader is not None and reader.op_type == "Softmax"
    return any(x.const_value is None and x.shape == node.outputs[0].shape
               and (scalar_of(c) == neutral or (masks and _is_filled_with(c, neutral)))
               for x, c in pairs)


def _is_filled_with(value: ir.Value | None, number: float) -> bool:
    array = array_of(value)
    return array is not None and bool((array == number).all())


def merge_reshapes(graph: ir.Graph) -> None:
    """Turns each chain of Reshape, Flatten, Squeeze, Unsqueeze into one Reshape."""
    for node in list(graph):
        if node.graph is None or node.op_type not in _SHAPING:
            continue
        source = node.inputs[0]
        assert source is not None
        chained = False
        while (before := producer(source, *_SHAPING)) is not None:
            source, chained = before.inputs[0], True
            assert source is not None
        target = array_of(node.inputs[1]) if node.op_type == "Reshape" else None
        dims = shape_of(node.outputs[0])
        if not chained and target is not None and tuple(target) == dims:
            continue
        if source.shape == node.outputs[0].shape and not node.outputs[0].is_graph_output():
            replace(graph, node.outputs[0], source, keep_name=False)
            continue
        shape = add_constant(graph, f"{node.outputs[0].name}_shape",
                             np.asarray(dims, dtype=np.int64))
        new = insert(graph, node, "Reshape", [source, shape], name=f"{node.outputs[0].name}_merged")
        replace(graph, node.outputs[0], new)


def merge_transposes(graph: ir.Graph) -> None:
    """Two Transposes in a row become one, and a Reshape pair around a Transpose goes away."""
    for node in list(graph):
        if node.graph is None or node.op_type != "Transpose":
            continue
        perm = _perm(node)
        source = node.inputs[0]
        assert source is not None
        before = producer(source, "Transpose")
        if before is not None:
            inner = _perm(before)
            x = before.inputs[0]
            new = insert(graph, node, "Transpose", [x], {"perm": [inner[p] for p in perm]},
                         name=f"{node.outputs[0].name}_merged")
            replace(graph, node.outputs[0], new)
            continue
        _unfold_batched_transpose(graph, node, perm)


def _perm(node: ir.Node) -> list[int]:
    perm = node.attributes.get_ints("perm")
    rank = len(shape_of(node.outputs[0]))
    return list(perm) if perm else list(range(rank))[::-1]


def _unfold_batched_transpose(graph: ir.Graph, node: ir.Node, perm: list[int]) -> None:
    """[*B, M, K] -> [prod B, M, K] -> transpose of the last two -> [*B, K, M]: one Transpose.

    The exporter spells K^T of an attention in this way.
    """
    if perm != [0, 2, 1]:
        return
    fold = producer(node.inputs[0], "Reshape")
    uses = [u.node for u in node.outputs[0].uses()]
    if fold is None or not uses or node.outputs[0].is_graph_output():
        return
    x = fold.inputs[0]
    assert x is not None
    dims = shape_of(x)
    rank = len(dims)
    swapped = (*dims[:-2], dims[-1], dims[-2])
    if rank < 4 or dims[-2:] != shape_of(fold.outputs[0])[-2:]:
        return
    for unfold in uses:
        if unfold.op_type != "Reshape" or shape_of(unfold.outputs[0]) != swapped:
            continue
        new = insert(graph, unfold, "Transpose", [x],
                     {"perm": [*range(rank - 2), rank - 1, rank - 2]},
                     name=f"{unfold.outputs[0].name}_merged")
        replace(graph, unfold.outputs[0], new)
    if node.graph is not None:
        remove_dead(graph, node)
