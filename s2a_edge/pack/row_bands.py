"""Convolutions with large columns are computed in bands of rows.

A convolution with more filters than output positions lets the runtime lay out all patches of an
image as columns first, and a transposed one does so always: 1.8 MiB in ResNet-50, a fifth of what
its training step needs for one sample. Each row of the result reads a few rows of the operand, so
the result is made band by band, with a band's columns at a time. Every element is the same sum of
products; the runtime may add them up in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import KIND_KEY, module_of, nbytes_of, shape_of
from s2a_edge.pack.plan.workspaces import Runtime, workspaces_of
from s2a_edge.pack.rule import ints_attribute

_ROWS = 2  # the axis of rows in [N, C, *spatial]


@dataclass(frozen=True)
class _Band:
    """Rows of the operand that rows of the result are made of.

    Attributes:
        start, stop: rows of the operand.
        pads: in rows, before and behind.
        extra: output padding, in rows.
        out_rows: of the result.
    """

    start: int
    stop: int
    pads: tuple[int, int]
    extra: int
    out_rows: int


@dataclass(frozen=True)
class _Rows:
    """How a convolution goes through rows: sizes, and the attributes of that axis."""

    rows: int
    out_rows: int
    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]

    @property
    def reach(self) -> int:
        """Rows between the first and the last that one position of a convolution reads."""
        return (self.kernel - 1) * self.dilation

    def read_by(self, first: int, last: int) -> _Band | None:
        """What a convolution reads for rows ``first`` to ``last`` of its result; None: padding."""
        start = first * self.stride - self.pads[0]
        stop = (last - 1) * self.stride - self.pads[0] + self.reach + 1
        inside = max(start, 0), min(stop, self.rows)
        if inside[0] >= inside[1]:
            return None
        return _Band(*inside, (max(-start, 0), max(stop - self.rows, 0)), 0, last - first)

    def added_to(self, first: int, last: int) -> _Band | None:
        """What a transposed convolution adds up in rows ``first`` to ``last``; None: nothing."""
        start = max(-((self.reach - first - self.pads[0]) // self.stride), 0)
        stop = min((last - 1 + self.pads[0]) // self.stride + 1, self.rows)
        if start >= stop:
            return None
        before = first + self.pads[0] - start * self.stride
        behind = (stop - start - 1) * self.stride + self.reach + 1 - before - (last - first)
        if before < 0 or -behind >= self.stride:  # more than the runtime adds as output padding
            return None
        return _Band(start, stop, (before, max(behind, 0)), max(-behind, 0), last - first)


def split_into_bands(model: ir.Model, most_bytes: int, runtime: Runtime) -> int:
    """Computes convolutions whose columns take more than that in bands of rows, where that helps.

    Args:
        model: in its final order; changed in place. Shapes are static.
        most_bytes: that the columns of one image, or of a band of it, may take.
        runtime: that will run it.

    Returns:
        how many convolutions were taken apart.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    graph = model.graph
    names = (n for node in graph for n in (node.name, *(v.name for v in node.outputs)))
    given = (v.name for v in graph.inputs)
    g = GraphBuilder(taken={n for n in (*names, *given, *graph.initializers) if n})
    bound = set(graph.outputs)
    count = 0
    for node in list(graph):
        rows = _rows_of(node) if node.outputs[0] not in bound else None
        columns = _columns_bytes(node, runtime) if rows is not None else 0
        if rows is None or columns <= most_bytes:
            continue
        bands = _fewest_bands(node, rows, columns, most_bytes)
        if bands is not None:
            _replace(graph, g, node, bands)
            count += 1
    for value in g.initializers.values():
        graph.register_initializer(value)
    return count


def _rows_of(node: ir.Node) -> _Rows | None:
    """How ``node`` goes through rows; None for anything but convolutions that can be split."""
    if node.domain or node.op_type not in ("Conv", "ConvTranspose"):
        return None
    auto = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    if auto not in ("NOTSET", "VALID") or node.attributes.get_ints("output_shape"):
        return None
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None, "required operands"
    kernel = shape_of(weight)[2:]
    spatial = len(kernel)
    pads = ints_attribute(node, "pads", [0] * 2 * spatial)
    return _Rows(shape_of(x)[_ROWS], shape_of(node.outputs[0])[_ROWS], kernel[0],
                 ints_attribute(node, "strides", [1] * spatial)[0],
                 ints_attribute(node, "dilations", [1] * spatial)[0], (pads[0], pads[spatial]))


def _columns_bytes(node: ir.Node, runtime: Runtime) -> int:
    """What the columns of one image take; 0 where patches are expanded tile by tile."""
    weight, out = node.inputs[1], shape_of(node.outputs[0])
    assert weight is not None, "a required operand"
    filters = shape_of(weight)[0] // (node.attributes.get_int("group", 1) or 1)
    if node.op_type == "Conv" and filters <= prod(out[_ROWS:]):
        return 0
    return sum(workspaces_of(node, runtime).after_bytes)


def _fewest_bands(node: ir.Node, rows: _Rows, columns_bytes: int, most_bytes: int,
                  ) -> tuple[_Band, ...] | None:
    """The fewest bands with columns of at most that; None if they need more than one image does."""
    x, result = node.inputs[0], node.outputs[0]
    assert x is not None, "a required operand"
    transposed = node.op_type == "ConvTranspose"
    row_bytes = columns_bytes // (rows.rows if transposed else rows.out_rows)
    unit = rows.stride if transposed else 1  # a band of fewer rows may get nothing added to it
    for number in range(2, rows.out_rows // unit + 1):
        bands = list(_bands(rows, number, unit, transposed=transposed))
        if None in bands:
            continue
        found = tuple(band for band in bands if band is not None)
        columns = max((b.stop - b.start if transposed else b.out_rows) for b in found) * row_bytes
        if columns > most_bytes:
            continue
        read = max(b.stop - b.start for b in found) * nbytes_of(x) // rows.rows
        # Bands lie beside their operands, and at the end beside the whole.
        needed = nbytes_of(result) + max(read + columns, nbytes_of(result))
        return found if needed < nbytes_of(result) + columns_bytes else None
    return None


def _bands(rows: _Rows, number: int, unit: int, *, transposed: bool) -> Iterator[_Band | None]:
    units = rows.out_rows // unit
    edges = [units * n // number * unit for n in range(number)] + [rows.out_rows]
    for first, last in pairwise(edges):
        yield (rows.added_to if transposed else rows.read_by)(first, last)


def _replace(graph: ir.Graph, g: GraphBuilder, node: ir.Node, bands: tuple[_Band, ...]) -> None:
    """Puts the nodes of ``bands`` in the place of ``node``."""
    x, old = node.inputs[0], node.outputs[0]
    assert x is not None, "a required operand"
    first, g.module = len(g.nodes), module_of(node)
    made = []
    for band in bands:
        part = g.op("Slice", x, g.constant([band.start]), g.constant([band.stop]),
                    g.constant([_ROWS]))
        made.append(g.op(node.op_type, part, *node.inputs[1:], **_attributes(node, band)))
    whole = g.op("Concat", *made, axis=_ROWS)
    whole.metadata_props.update(old.metadata_props)
    for value in made:
        value.metadata_props[KIND_KEY] = old.metadata_props.get(KIND_KEY, g.kind)
    added = g.nodes[first:]
    for one in added:
        one.metadata_props.update(node.metadata_props)
    graph.insert_before(node, added)
    old.replace_all_uses_with(whole)
    name = old.name
    graph.remove(node, safe=True)
    whole.name, old.name = name, None


def _attributes(node: ir.Node, band: _Band) -> dict[str, Any]:
    """Those of ``node``, with the paddings of the band."""
    given: dict[str, Any] = {k: a.value for k, a in node.attributes.items() if k != "auto_pad"}
    weight = node.inputs[1]
    assert weight is not None, "a required operand"
    spatial = len(shape_of(weight)) - 2
    pads = ints_attribute(node, "pads", [0] * 2 * spatial)
    pads[0], pads[spatial] = band.pads
    extra = ints_attribute(node, "output_padding", [0] * spatial)
    extra[0] = band.extra
    given.pop("output_padding", None)
    return {**given, "pads": pads, **({"output_padding": extra} if any(extra) else {})}


__all__ = ["split_into_bands"]
