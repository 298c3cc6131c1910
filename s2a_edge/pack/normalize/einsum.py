"""Einsum as products: Transpose, Reshape, MatMul or Mul, ReduceSum.

Its kernel would take workspaces that no plan knows, and its gradient would be an Einsum again; the
products have rules, and a frozen operand makes one of them a linear layer.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize.rewrite import add_constant, array_of, insert, replace


def expand_einsums(graph: ir.Graph) -> None:
    """Replaces each Einsum whose operands have no label twice (no diagonals)."""
    for node in list(graph):
        if node.op_type == "Einsum":
            _expand(graph, node)


@dataclass(frozen=True)
class _Term:
    """A value and a label per axis."""

    value: ir.Value
    labels: str

    def size(self, label: str) -> int:
        return shape_of(self.value)[self.labels.index(label)]


class _Builder:
    """Inserts nodes before the Einsum."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.name, self.count = str(node.outputs[0].name), 0

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        self.count += 1
        return insert(self.graph, self.node, op_type, list(inputs), attributes,
                      name=f"{self.name}_einsum{self.count}")

    def ints(self, numbers: list[int]) -> ir.Value:
        return add_constant(self.graph, f"{self.name}_ints", np.asarray(numbers, np.int64))

    def total(self, term: _Term, keep: str) -> _Term:
        """Sums over the labels that are not in ``keep``."""
        axes = [i for i, label in enumerate(term.labels) if label not in keep]
        if not axes:
            return term
        value = self.op("ReduceSum", term.value, self.ints(axes), keepdims=0)
        return _Term(value, "".join(label for label in term.labels if label in keep))

    def order(self, term: _Term, labels: str) -> _Term:
        """Axes in the order of ``labels``; a constant is turned here."""
        if term.labels == labels:
            return term
        perm = [term.labels.index(label) for label in labels]
        array = array_of(term.value)
        if array is not None:
            return _Term(add_constant(self.graph, f"{term.value.name}_turned",
                                      array.transpose(perm)), labels)
        return _Term(self.op("Transpose", term.value, perm=perm), labels)

    def shape(self, value: ir.Value, dims: list[int]) -> ir.Value:
        if list(shape_of(value)) == dims:
            return value
        array = array_of(value)
        if array is not None:
            return add_constant(self.graph, f"{value.name}_shaped", array.reshape(dims))
        return self.op("Reshape", value, self.ints(dims))


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    parsed = _parse(node)
    if parsed is None:
        return
    terms, out = parsed
    build = _Builder(graph, node)
    while len(terms) > 1:
        a, b, *rest = terms
        later = out + "".join(t.labels for t in rest)
        terms = [_product(build, a, b, later), *rest]
    result = build.order(build.total(terms[0], out), out).value
    if result is node.inputs[0] or result.const_value is not None:
        return  # nothing to do: x -> x
    replace(graph, node.outputs[0], result)


def _parse(node: ir.Node) -> tuple[list[_Term], str] | None:
    """Operands with their labels, ellipses spelled out, and the labels of the output."""
    equation = (node.attributes.get_string("equation", "") or "").replace(" ", "")
    left, arrow, out = equation.partition("->")
    specs = left.split(",")
    free = iter(c for c in string.ascii_letters if c not in equation)
    values = [v for v in node.inputs if v is not None]
    spans = [len(shape_of(v)) - len(s.replace("...", "")) for v, s in zip(values, specs,
                                                                        strict=True)]
    shared = "".join(next(free) for _ in range(max(spans, default=0)))
    terms = []
    for value, spec, span in zip(values, specs, spans, strict=True):
        labels = spec.replace("...", shared[len(shared) - span:] if span else "")
        if len(set(labels)) != len(labels):
            return None
        terms.append(_Term(value, labels))
    if not arrow:
        counts = {c: left.count(c) for c in sorted(set(left) - set(".,"))}
        out = "..." + "".join(c for c, n in counts.items() if n == 1)
    return terms, out.replace("...", shared)


def _product(build: _Builder, a: _Term, b: _Term, later: str) -> _Term:
    """Both operands in one, with the labels that are still wanted."""
    a = build.total(_squeezed(build, a, b), b.labels + later)
    b = build.total(_squeezed(build, b, a), a.labels + later)
    batch = "".join(c for c in a.labels if c in b.labels and c in later)
    inner = "".join(c for c in a.labels if c in b.labels and c not in later)
    left = "".join(c for c in a.labels if c not in b.labels)
    right = "".join(c for c in b.labels if c not in a.labels)
    a_dims, b_dims = ({c: t.size(c) for c in t.labels} for t in (a, b))
    if not inner:
        x = build.shape(build.order(a, batch + left).value,
                        [*(a_dims[c] for c in batch + left), *[1] * len(right)])
        y = build.shape(build.order(b, batch + right).value,
                        [*(b_dims[c] for c in batch), *[1] * len(left),
                         *(b_dims[c] for c in right)])
        return _Term(build.op("Mul", x, y), batch + left + right)
    depth = int(np.prod([a_dims[c] for c in inner]))
    x, y = build.order(a, batch + left + inner).value, build.order(b, batch + inner + right).value
    outer = [a_dims[c] for c in batch]
    if batch or not left:
        x = build.shape(x, [*outer, int(np.prod([a_dims[c] for c in left])), depth])
    else:  # rows of a matrix product may have any number of axes
        x = build.shape(x, [*(a_dims[c] for c in left), depth])
    y = build.shape(y, [*outer, depth, int(np.prod([b_dims[c] for c in right]))])
    made = build.op("MatMul", x, y)
    dims = [*outer, *(a_dims[c] for c in left), *(b_dims[c] for c in right)]
    return _Term(build.shape(made, dims), batch + left + right)


def _squeezed(build: _Builder, term: _Term, other: _Term) -> _Term:
    """Without axes of size 1 that the other operand has longer: they broadcast."""
    kept = [c for c in term.labels
            if not (term.size(c) == 1 and c in other.labels and other.size(c) > 1)]
    if len(kept) == len(term.labels):
        return term
    return _Term(build.shape(term.value, [term.size(c) for c in kept]), "".join(kept))
