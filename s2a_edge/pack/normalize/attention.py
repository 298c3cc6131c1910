"""Attention scores: keys stay token-major, and the scale is a factor of the product."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.normalize.rewrite import (
    insert,
    only_consumer,
    operands,
    producer,
    replace,
    scalar_of,
    split_scalar,
)


def fuse_transposed_keys(graph: ir.Graph) -> None:
    """MatMul(a, Transpose(b)) -> FusedMatMul(a, b', transB=1) where b' needs no such transpose.

    Transpose([0, 2, 3, 1]) of [B, T, H, K] becomes [0, 2, 1, 3]: the keys are kept as [B, H, T, K],
    the layout that the backward needs. A Transpose of the last two axes alone goes away. Scalars
    on either side and behind the product become its ``alpha``, which costs no pass over memory.
    """
    for node in list(graph):
        if node.graph is not None and node.op_type == "MatMul":
            _fuse(graph, node)


def _fuse(graph: ir.Graph, node: ir.Node) -> None:
    a, b = operands(node)
    if b.const_value is not None or len(shape_of(b)) < 3:
        return
    key, factor = _unscaled(b)
    transpose = producer(key, "Transpose")
    if transpose is None:
        return
    source = transpose.inputs[0]
    perm = transpose.attributes.get_ints("perm")
    rank = len(shape_of(key))
    assert source is not None and perm is not None
    # Only where the fastest axis of the source moves: else b is token-major as it is.
    if perm[-2] != rank - 1:
        return
    query, query_factor = _unscaled(a)
    last, score_factor = _scale_after(node)
    total = factor * query_factor * score_factor
    name = str(node.outputs[0].name)
    swapped = [*perm[:-2], perm[-1], perm[-2]]
    if swapped != list(range(rank)):
        source = insert(graph, node, "Transpose", [source], {"perm": swapped},
                        name=f"{name}_keys")
    attributes: dict[str, object] = {"transB": 1}
    if total != 1.0:
        attributes["alpha"] = total
    new = insert(graph, node, "FusedMatMul", [query, source], attributes,
                 domain=MICROSOFT, name=f"{name}_scores")
    replace(graph, last.outputs[0], new)


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """``value`` without scalar factors, and their product; factors that others read stay."""
    factor = 1.0
    while (node := producer(value, "Mul", "Div")) is not None and len(value.uses()) == 1:
        found = _scalar_factor(node)
        if found is None or value.is_graph_output():
            break
        value, number = found
        factor *= number
    return value, factor


def _scalar_factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    if node.op_type == "Mul":
        return split_scalar(node)
    x, c = operands(node)
    number = scalar_of(c)
    return (x, 1.0 / number) if number else None


def _scale_after(node: ir.Node) -> tuple[ir.Node, float]:
    """The last of the scalar multiplications that follow ``node``, and their product."""
    last, factor = node, 1.0
    while (after := only_consumer(last.outputs[0])) is not None and after.op_type in ("Mul", "Div"):
        found = _scalar_factor(after)
        if found is None or found[0] is not last.outputs[0]:
            break
        last, factor = after, factor * found[1]
    return last, factor


def drop_nan_guards(graph: ir.Graph) -> None:
    """Where(IsNaN(p), 0, p) -> p, with p = softmax(scores).

    Exporters guard against rows in which every key is masked. No row of a usable sample is:
    a token attends at least to itself.
    """
    for node in list(graph):
        if node.graph is None or node.op_type != "Where":
            continue
        test = producer(node.inputs[0], "IsNaN")
        probabilities = node.inputs[2]
        if (test is not None and probabilities is not None
                and test.inputs[0] is probabilities and scalar_of(node.inputs[1]) == 0.0
                and producer(probabilities, "Softmax") is not None):
            replace(graph, node.outputs[0], probabilities)
