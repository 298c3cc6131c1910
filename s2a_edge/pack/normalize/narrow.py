"""Rows that nobody reads are not computed.

A backbone whose features are its class token computes the last block for every token and then
throws all but one away. The selection moves up through everything that treats tokens one by one:
in a ViT's last block the MLP, the projection, both norms' outputs and the queries' rows of the
attention; only keys and values see all tokens. Values, gradients and saved codes shrink with it,
and the function is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.normalize.rewrite import (
    add_constant,
    array_of,
    insert,
    only_consumer,
)
from s2a_edge.pack.normalize.rewrite import replace as replace_value

# One value in, one out, each element by itself.
_POINTWISE = frozenset({
    "Gelu", "Relu", "Erf", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Neg", "Abs", "Reciprocal",
    "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Softplus", "Cast", "Mish", "QuickGelu",
})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class _Range:
    """A contiguous part of one axis."""

    axis: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def narrow_selections(graph: ir.Graph) -> None:
    """Moves each selection of a part of an axis as far up as it goes.

    Only a selection that is the sole reader of its operand moves: else the rest is needed anyway.
    Two branches that want the same part share one selection, which may then move on.
    """
    while any([_move(graph, node) for node in list(graph) if node.graph is not None]):
        pass


def _move(graph: ir.Graph, node: ir.Node) -> bool:
    part = _selection(node)
    source = node.inputs[0] if part is not None else None
    if part is None or source is None or _movable(source, part) is None:
        return False
    narrowed = _narrow(graph, source, part)
    if node.op_type == "Gather":  # a scalar index drops the axis
        dims = np.asarray(shape_of(node.outputs[0]), np.int64)
        shape = add_constant(graph, f"{node.outputs[0].name}_shape", dims)
        narrowed = insert(graph, node, "Reshape", [narrowed, shape],
                          name=f"{node.outputs[0].name}_narrow")
    replace_value(graph, node.outputs[0], narrowed)
    return True


def _selection(node: ir.Node) -> _Range | None:
    """The range that a Gather of one index or a Slice of one axis picks."""
    constants = [array_of(v) for v in node.inputs[1:]]
    if node.domain or not constants or any(c is None for c in constants):
        return None
    arrays = [c for c in constants if c is not None]
    shape = shape_of(node.inputs[0]) if node.inputs[0] is not None else ()
    if node.op_type == "Gather" and arrays[0].ndim == 0:
        axis = node.attributes.get_int("axis", 0) % len(shape)
        index = int(arrays[0]) % shape[axis]
        return _Range(axis, index, index + 1)
    if node.op_type != "Slice" or arrays[0].size != 1 or len(arrays) < 3:
        return None
    if len(arrays) > 3 and int(arrays[3].reshape(())) != 1:
        return None
    axis = int(arrays[2].reshape(())) % len(shape)
    start, stop, _ = slice(int(arrays[0].reshape(())),
                           int(arrays[1].reshape(()))).indices(shape[axis])
    return _Range(axis, start, stop) if start < stop else None


def _narrow(graph: ir.Graph, value: ir.Value, part: _Range) -> ir.Value:
    """``value`` restricted to ``part``: by a narrower producer where possible, else by a Slice."""
    node = value.producer()
    operands = _movable(value, part)
    if node is None or operands is None:
        return _slice(graph, value, part)
    inputs = [v if p is None or v is None else _narrow(graph, v, p)
              for v, p in zip(node.inputs, operands, strict=True)]
    name = f"{value.name}_narrow"
    attributes = {k: a.value for k, a in node.attributes.items()}
    if node.op_type == "Reshape":
        dims = list(shape_of(value))
        dims[part.axis] = part.size
        inputs[1] = add_constant(graph, f"{name}_shape", np.asarray(dims, np.int64))
    return insert(graph, node, node.op_type, inputs, attributes, domain=node.domain, name=name)


def _slice(graph: ir.Graph, value: ir.Value, part: _Range) -> ir.Value:
    for use in value.uses():
        if use.node.op_type == "Slice" and _selection(use.node) == part:
            return use.node.outputs[0]
    anchor = next(n for n in graph if any(v is value for v in n.inputs))
    bounds = [add_constant(graph, f"{value.name}_{what}", np.array([number], np.int64))
              for what, number in (("start", part.start), ("stop", part.stop),
                                   ("axis", part.axis))]
    name = f"{value.name}_{part.start}_{part.stop}_of_{part.axis}"
    return insert(graph, anchor, "Slice", [value, *bounds], name=name)


def _movable(value: ir.Value, part: _Range) -> list[_Range | None] | None:
    """Per operand of the producer of ``value``, what of it ``part`` needs; None: all of it.

    None as a whole where the producer mixes the axis, or others read ``value`` as well.
    """
    node = value.producer()
    if node is None or only_consumer(value) is None or len(node.outputs) != 1:
        return None
    if node.domain not in ("", MICROSOFT):
        return None
    rank = len(shape_of(value))
    first = [part, *[None] * (len(node.inputs) - 1)]
    if node.op_type in _POINTWISE:
        return first
    if node.op_type in _BINARY:
        return _binary_parts(node, part, rank)
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        return first if part.axis < node.attributes.get_int("axis", -1) % rank else None
    if node.op_type in ("Softmax", "LpNormalization"):
        return first if part.axis != node.attributes.get_int("axis", -1) % rank else None
    if node.op_type in ("MatMul", "FusedMatMul"):
        rows = part.axis == rank - 2 and len(shape_of(_operand(node, 0))) == rank
        return first if rows and not node.attributes.get_int("transA", 0) else None
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm")
        return [replace(part, axis=perm[part.axis])] if perm else None
    if node.op_type == "Reshape":
        axis = _kept_axis(shape_of(_operand(node, 0)), shape_of(value), part.axis)
        return None if axis is None else [replace(part, axis=axis), None]
    return None


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _binary_parts(node: ir.Node, part: _Range, rank: int) -> list[_Range | None] | None:
    found: list[_Range | None] = []
    for value in node.inputs:
        assert value is not None
        shape = shape_of(value)
        axis = part.axis - (rank - len(shape))
        if axis < 0 or shape[axis] == 1:  # broadcast along the axis
            found.append(None)
        elif value.const_value is not None:
            return None
        else:
            found.append(replace(part, axis=axis))
    return found


def _kept_axis(source: tuple[int, ...], target: tuple[int, ...], axis: int) -> int | None:
    """The axis of ``source`` that a reshape to ``target`` leaves as ``axis``."""
    before = int(np.prod(target[:axis], dtype=np.int64))
    size = 1
    for index, extent in enumerate(source):
        if size == before and extent == target[axis]:
            return index
        size *= extent
    return None


__all__ = ["narrow_selections"]
