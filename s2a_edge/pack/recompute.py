"""Saved values that are computed again from other saved ones, instead of being kept.

``cheap`` follows element-wise operators and views: a norm's output comes back from its normalized
values, which are kept anyway. ``products`` also passes one product with a frozen matrix: queries,
keys, values and the argument of a GELU come back from the norm before them, at the price of that
product. Selective recomputation in the sense of arXiv 2205.05198, on codes instead of full values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.ops.linear import at_hand

Recompute = Literal["none", "cheap", "products"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "cheap", "products")

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Cast", "Gelu", "Sigmoid",
                          "Tanh", "Relu"})
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose", "Slice",
                    "Concat", "Split"})
_PRODUCTS = frozenset({("", "MatMul"), ("", "Gemm"), (MICROSOFT, "FusedMatMul")})
_NORMS = frozenset({("", "LayerNormalization")})
# A product with a matrix of low rank (an adapter) costs next to nothing.
_LOW_RANK = 32
_MOST_NODES = 24
_MOST_PRODUCTS = {"none": 0, "cheap": 0, "products": 1}

# Is a value kept, or made again from what is kept?
IsKept = Callable[[ir.Value], bool]


def way_back(value: ir.Value, kept: IsKept, mode: Recompute) -> tuple[ir.Node, ...] | None:
    """The nodes that compute ``value`` from kept values, in order; None where ``mode`` has none.

    Args:
        value: of a graph under construction; not kept itself.
        kept: says of a value whether the backward can have it.
        mode: which nodes may be run again.
    """
    if mode == "none":
        return None
    nodes: dict[ir.Node, None] = {}
    products = 0
    waiting = [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if node is None or node in nodes:
            continue
        if current is not value and kept(current):
            continue
        if not _allowed(node, mode):
            return None
        products += _is_product(node) and min(shape_of(node.inputs[1])) >= _LOW_RANK  # type: ignore[arg-type]  # allowed: it has one
        nodes[node] = None
        if len(nodes) > _MOST_NODES or products > _MOST_PRODUCTS[mode]:
            return None
        waiting.extend(v for v in node.inputs if v is not None)
    return _in_order(nodes, value) if nodes else None


def _in_order(nodes: dict[ir.Node, None], value: ir.Value) -> tuple[ir.Node, ...]:
    ordered: dict[ir.Node, None] = {}

    def visit(node: ir.Node) -> None:
        for operand in node.inputs:
            made_by = None if operand is None else operand.producer()
            if made_by in nodes and made_by not in ordered:
                visit(made_by)
        ordered[node] = None

    last = value.producer()
    assert last is not None
    visit(last)
    return tuple(ordered)


def _is_product(node: ir.Node) -> bool:
    return (node.domain, node.op_type) in _PRODUCTS


def _allowed(node: ir.Node, mode: Recompute) -> bool:
    if _is_product(node):
        return mode == "products" and len(node.inputs) > 1 and at_hand(node.inputs[1])
    return not node.domain and (node.op_type in _ELEMENTWISE or node.op_type in _VIEWS)


def sources_of_products(nodes: Iterable[ir.Node], flowing: set[ir.Value], mode: Recompute,
                        ) -> frozenset[ir.Node]:
    """The norms whose normalized values products will be computed from again.

    They are kept in more bits: their error then also goes through those products.

    Args:
        nodes: of the adapted graph.
        flowing: values that a gradient reaches.
        mode: nothing is found unless it is ``products``.
    """
    if mode != "products":
        return frozenset()
    found = set()
    for node in nodes:
        if (node.domain, node.op_type) in _NORMS and node.outputs[0] in flowing \
                and _feeds_product(node.outputs[0]):
            found.add(node)
    return frozenset(found)


def _feeds_product(value: ir.Value) -> bool:
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop().uses():
            node = use.node
            if _is_product(node):
                if use.idx == 0 and at_hand(node.inputs[1]):
                    return True
            elif not node.domain and node.op_type in _VIEWS:
                fresh = [v for v in node.outputs if v not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
    return False


__all__ = ["RECOMPUTES", "Recompute", "sources_of_products", "way_back"]
