"""Slices that together cover an axis become one Split.

Exporters unpack q, k, v with three Slices or Gathers of one tensor. Their gradients would be
three zero-padded tensors of the full size, summed; a Split's gradient is one Concat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import MODULE_KEY, module_of, shape_of
from s2a_edge.pack.shape_inference import infer_outputs


@dataclass(frozen=True)
class _Piece:
    node: ir.Node
    axis: int
    start: int
    stop: int


def slices_to_splits(model: ir.Model) -> None:
    """Rewrites ``model`` in place; values keep their names."""
    graph = model.graph
    values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
    for value in values:
        pieces = _pieces(value)
        if pieces:
            _replace(graph, value, pieces)


def _pieces(value: ir.Value) -> list[_Piece]:
    """All uses of ``value``, if they cut one axis into adjacent parts without a rest."""
    uses = list(value.uses())
    if len(uses) < 2 or value.is_graph_output():
        return []
    pieces = [_piece(use.node) for use in uses if use.idx == 0]
    if len(pieces) != len(uses) or any(p is None for p in pieces):
        return []
    found = sorted((p for p in pieces if p is not None), key=lambda p: p.start)
    axis, size = found[0].axis, shape_of(value)[found[0].axis]
    stops = [0, *(p.stop for p in found)]
    if any(p.axis != axis or p.node.outputs[0].is_graph_output() for p in found) \
            or stops[-1] != size:
        return []
    return found if all(p.start == s for p, s in zip(found, stops, strict=False)) else []


def _piece(node: ir.Node) -> _Piece | None:
    value = node.inputs[0]
    if value is None or node.domain or any(
            v is None or v.const_value is None for v in node.inputs[1:]):
        return None
    shape = shape_of(value)
    constants = [v.const_value.numpy() for v in node.inputs[1:]
                 if v is not None and v.const_value is not None]
    if node.op_type == "Gather" and constants[0].ndim == 0:
        axis = node.attributes.get_int("axis", 0) % len(shape)
        index = int(constants[0]) % shape[axis]
        return _Piece(node, axis, index, index + 1)
    if node.op_type != "Slice" or len(constants) < 3 or constants[0].size != 1:
        return None
    axis = int(constants[2][0]) % len(shape)
    if len(constants) > 3 and int(constants[3][0]) != 1:
        return None
    start, stop, _ = slice(int(constants[0][0]), int(constants[1][0])).indices(shape[axis])
    return _Piece(node, axis, start, stop)


def _replace(graph: ir.Graph, value: ir.Value, pieces: list[_Piece]) -> None:
    first = next(n for n in graph if n in [p.node for p in pieces])
    sizes = ir.Value(name=f"{value.name}_sizes", type=ir.TensorType(ir.DataType.INT64),
                     shape=ir.Shape([len(pieces)]))
    sizes.const_value = ir.tensor(np.array([p.stop - p.start for p in pieces], np.int64),
                                  name=sizes.name)
    graph.initializers[sizes.name or ""] = sizes
    split = ir.Node("", "Split", [value, sizes], [ir.AttrInt64("axis", pieces[0].axis)],
                    num_outputs=len(pieces), name=f"{value.name}_split")
    split.metadata_props[MODULE_KEY] = module_of(first)
    for number, output in enumerate(split.outputs):
        output.name = f"{value.name}_part{number}"
    graph.insert_before(first, split)
    infer_outputs(split)
    for piece, output in zip(pieces, split.outputs, strict=True):
        old = piece.node.outputs[0]
        if piece.node.op_type == "Slice":
            name = old.name
            ir.convenience.replace_all_uses_with(old, output)
            old.name, output.name = f"{name}_replaced", name
            graph.remove(piece.node, safe=True)
            continue
        axes = ir.Value(name=f"{old.name}_axes", type=ir.TensorType(ir.DataType.INT64),
                        shape=ir.Shape([1]))
        axes.const_value = ir.tensor(np.array([piece.axis], np.int64), name=axes.name)
        graph.initializers[axes.name or ""] = axes
        squeeze = ir.Node("", "Squeeze", [output, axes], num_outputs=1,
                          name=f"{piece.node.name}_squeeze",
                          metadata_props=dict(piece.node.metadata_props))
        squeeze.outputs[0].name = f"{old.name}_squeezed"
        squeeze.outputs[0].shape, squeeze.outputs[0].type = old.shape, old.type
        graph.insert_before(piece.node, squeeze)
        ir.convenience.replace_all_uses_with(old, squeeze.outputs[0])
        graph.remove(piece.node, safe=True)
