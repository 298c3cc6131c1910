"""The trunk of a network: the values that everything from the input to the features passes.

Between two consecutive trunk values lies either one operator or a *span* in which the data forks
and joins again. A span that an addition joins is a residual connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, dtype_of

_WEIGHTED = frozenset({("", "Conv"), ("", "ConvTranspose"), ("", "MatMul"), ("", "Gemm"),
                       (MICROSOFT, "FusedMatMul")})


@dataclass(frozen=True)
class Span:
    """What lies between two consecutive trunk values.

    Attributes:
        start: the trunk value before it.
        end: the trunk value that its last node computes.
        nodes: in execution order; those alone that depend on ``start``.
    """

    start: ir.Value
    end: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def forks(self) -> bool:
        """Whether several paths lead from start to end, with a weight on one of them."""
        return len(self.nodes) > 1 and any(map(is_weighted, self.nodes))

    @property
    def residual(self) -> bool:
        """Whether the paths are joined by adding."""
        join = self.nodes[-1]
        computed = [v for v in join.inputs if v is not None and v.const_value is None]
        return self.forks and len(computed) > 1 and join.op_type in ("Add", "Sum", "Gemm")


def is_weighted(node: ir.Node) -> bool:
    """Whether ``node`` is a product or convolution with a frozen weight."""
    return (node.domain, node.op_type) in _WEIGHTED and any(
        v is not None and v.const_value is not None and len(v.const_value.shape) > 1
        for v in node.inputs[:2])


def trunk(nodes: Sequence[ir.Node], data_inputs: Sequence[ir.Value], features: ir.Value,
          ) -> tuple[Span, ...]:
    """The spans from the first value that can have a gradient to ``features``, in order.

    Where the data comes in at several places (a mask beside the tokens, say), the trunk is that of
    the place from which most residual spans lead on; what joins it from elsewhere counts as given.
    """
    found = [_spans(nodes, root, features) for root in _roots(nodes, data_inputs)]
    return max(found, key=lambda spans: sum(s.residual for s in spans), default=())


def _roots(nodes: Sequence[ir.Node], data_inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Where floating-point data enters: inputs, and what is computed from integer inputs alone."""
    depends = set(data_inputs)
    flows = {v for v in data_inputs if dtype_of(v).is_floating_point()}
    roots = list(flows)
    for node in nodes:
        operands = [v for v in node.inputs if v in depends]
        if not operands:
            continue
        depends.update(node.outputs)
        made = [v for v in node.outputs if v.name and dtype_of(v).is_floating_point()]
        if not any(v in flows for v in operands):
            roots += made
        flows.update(made)
    return roots


def _spans(nodes: Sequence[ir.Node], root: ir.Value, features: ir.Value) -> tuple[Span, ...]:
    """One sweep: where a single value is still to be read, everything passes through it."""
    relevant = _between(nodes, root, features)
    reads: dict[ir.Value, int] = {root: 0, features: 1}
    for node in relevant:
        for value in node.inputs:
            if value is not None:
                reads[value] = reads.get(value, 0) + 1
    made = {root, *(v for node in relevant for v in node.outputs)}
    unread = {root}
    start = root
    spans: list[Span] = []
    inside: list[ir.Node] = []
    for node in relevant:
        inside.append(node)
        for value in node.inputs:
            if value in made and value is not None:
                reads[value] -= 1
                if reads[value] == 0:
                    unread.discard(value)
        unread.update(v for v in node.outputs if reads.get(v))
        if len(unread) == 1 and node.outputs[0] in unread:
            spans.append(Span(start, node.outputs[0], tuple(inside)))
            start, inside = node.outputs[0], []
    return tuple(spans)


def _between(nodes: Sequence[ir.Node], root: ir.Value, features: ir.Value) -> list[ir.Node]:
    """The nodes on floating-point paths from ``root`` to ``features``."""
    reached = {root}
    for node in nodes:
        if any(v in reached for v in node.inputs):
            reached.update(v for v in node.outputs
                           if v.name and dtype_of(v).is_floating_point())
    leads = {features}
    kept: list[ir.Node] = []
    for node in reversed(nodes):
        if any(v in leads and v in reached for v in node.outputs):
            leads.update(v for v in node.inputs if v is not None)
            kept.append(node)
    return kept[::-1]


__all__ = ["Span", "is_weighted", "trunk"]
