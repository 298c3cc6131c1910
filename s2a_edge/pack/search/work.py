"""What a graph does, by kind of operator: runs, arithmetic, memory traffic.

All three are sums over nodes, so a time that is linear in them can be added up, taken apart and
interpolated between batches.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.graph import nbytes_of, shape_of


@dataclass(frozen=True)
class Work:
    """Nodes of one kind together.

    Attributes:
        nodes: how many.
        flops: of products: multiplications and additions.
        size_bytes: of everything that they read and write.
    """

    nodes: float = 0.0
    flops: float = 0.0
    size_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.nodes + other.nodes, self.flops + other.flops,
                    self.size_bytes + other.size_bytes)


GraphWork = Mapping[str, Work]
"""By kind: the operator's name, with its domain where that is not ONNX's own."""


def graph_work(nodes: Iterable[ir.Node]) -> GraphWork:
    """The work of all ``nodes`` by kind."""
    found: dict[str, Work] = defaultdict(Work)
    for node in nodes:
        found[kind_of(node)] += node_work(node)
    return dict(found)


def kind_of(node: ir.Node) -> str:
    """The kind of one node; a product with a channel for each group is a kind of its own."""
    name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    return f"{name} grouped" if node.attributes.get_int("group", 1) > 1 else name


def node_work(node: ir.Node) -> Work:
    """The work of one node, from the static shapes of its operands."""
    size_bytes = sum(nbytes_of(v) for v in (*node.inputs, *node.outputs) if v is not None)
    return Work(1.0, _flops(node), float(size_bytes))


def _flops(node: ir.Node) -> float:
    """2 for each multiply-add of a product; 0 of everything else."""
    out = math.prod(shape_of(node.outputs[0]))
    shapes = [() if v is None else shape_of(v) for v in node.inputs]
    if node.op_type in ("MatMul", "FusedMatMul"):
        turned = node.attributes.get_int("transA", 0)
        return 2.0 * out * shapes[0][-2 if turned and len(shapes[0]) > 1 else -1]
    if node.op_type == "Gemm":
        return 2.0 * out * shapes[0][0 if node.attributes.get_int("transA", 0) else 1]
    if node.op_type == "Conv":
        return 2.0 * out * math.prod(shapes[1][1:])
    if node.op_type == "ConvTranspose":
        return 2.0 * math.prod(shapes[0]) * math.prod(shapes[1][1:])
    return 0.0


__all__ = ["GraphWork", "Work", "graph_work", "kind_of", "node_work"]
