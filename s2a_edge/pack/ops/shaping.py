"""Operators that only move values: their backward moves them back, and nothing is saved."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.ops.linear import at_hand
from s2a_edge.pack.ops.padding import pad
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    constant_operands,
    int_attribute,
    ints_attribute,
    is_constant,
    reshape,
    scalar,
    sum_to,
)


def zeros(g: GraphBuilder, shape: tuple[int, ...], like: ir.Value) -> ir.Value:
    """A zero tensor, expanded from one scalar at run time (a constant would be a weight)."""
    return g.op("Expand", scalar(g, 0.0, like), g.constant(list(shape)))


def _like_input(b: Backward) -> Gradients:
    return [reshape(b.g, b.dy, b.shape(0)), *[None] * (len(b.needs) - 1)]


def _transpose(b: Backward) -> Gradients:
    rank = len(b.shape(0))
    perm = ints_attribute(b.node, "perm", list(range(rank))[::-1])
    return [b.g.op("Transpose", b.dy, perm=[int(i) for i in np.argsort(perm)])]


def _expand(b: Backward) -> Gradients:
    return [sum_to(b.g, b.dy, b.shape(0)), None]


def _concat(b: Backward) -> Gradients:
    axis = int_attribute(b.node, "axis", 0) % len(b.out_shape())
    grads: list[ir.Value | None] = []
    start = 0
    for index, need in enumerate(b.needs):
        stop = start + b.shape(index)[axis]
        grads.append(b.g.op("Slice", b.dy, b.g.constant([start]), b.g.constant([stop]),
                            b.g.constant([axis])) if need else None)
        start = stop
    return grads


def _split(b: Backward) -> Gradients:
    like = next(dy for dy in b.dys if dy is not None)
    parts = [zeros(b.g, b.out_shape(i), like) if dy is None else dy
             for i, dy in enumerate(b.dys)]
    return [b.g.op("Concat", *parts, axis=int_attribute(b.node, "axis", 0)),
            *[None] * (len(b.needs) - 1)]


def _slice(b: Backward) -> Gradients:
    shape = b.shape(0)
    starts, stops = b.constant(1), b.constant(2)
    axes = b.constant(3) if len(b.node.inputs) > 3 and b.node.inputs[3] is not None \
        else np.arange(len(starts))
    steps = b.constant(4) if len(b.node.inputs) > 4 and b.node.inputs[4] is not None \
        else np.ones(len(starts), np.int64)
    dy = b.dy
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        axis = int(axis) % len(shape)
        picked = range(shape[axis])[slice(int(start), int(stop), int(step))]
        if step != 1:
            dy = _spread(b.g, dy, axis, int(step))
            if step < 0:
                picked = picked[::-1]
        before[axis] = picked[0]
        after[axis] = shape[axis] - 1 - picked[-1]
    return [pad(b.g, dy, before, after), *[None] * (len(b.needs) - 1)]


def _spread(g: GraphBuilder, value: ir.Value, axis: int, step: int) -> ir.Value:
    """Puts step-1 zeros between the entries of ``axis`` (reversing it for a negative step)."""
    if step < 0:
        value = g.op("Slice", value, g.constant([-1]), g.constant([-(2**62)]),
                     g.constant([axis]), g.constant([-1]))
    stride = abs(step)
    if stride == 1:
        return value
    shape = list(shape_of(value))
    wide = reshape(g, value, [*shape[: axis + 1], 1, *shape[axis + 1:]])
    after = [0] * (len(shape) + 1)
    after[axis + 1] = stride - 1
    wide = pad(g, wide, [0] * (len(shape) + 1), after)
    shape[axis] *= stride
    flat = reshape(g, wide, shape)
    return g.op("Slice", flat, g.constant([0]), g.constant([shape[axis] - stride + 1]),
                g.constant([axis]))


def _gather_forward(f: Forward) -> tuple[ir.Value, ...]:
    if f.needs[0] and not at_hand(f.node.inputs[1]):
        f.save("rows", f.x(1), "exact")
    return f.emit()


def _gather_refuses(node: ir.Node) -> str | None:
    """Computed indices pick rows of a table: along axis 0, and the table is frozen or trains."""
    return None if int_attribute(node, "axis", 0) == 0 else constant_operands(1)(node)


def _picked_rows(b: Backward) -> Gradients:
    """The gradient of a table whose rows were picked: each adds up in the row it came from."""
    g, shape, rows = b.g, b.shape(0), math.prod(b.shape(1))
    inner = math.prod(shape[1:])
    picked = b.weight(1) if at_hand(b.node.inputs[1]) else b.saved("rows")
    places = g.op("Expand", reshape(g, picked, (rows, 1)), g.constant([rows, inner]))
    start = zeros(g, (shape[0], inner), b.dy)
    table = g.op("ScatterElements", start, places, reshape(g, b.dy, (rows, inner)), axis=0,
                 reduction="add")
    return [reshape(g, table, shape), None]


def _gather(b: Backward) -> Gradients:
    if not is_constant(b.node.inputs[1]):
        return _picked_rows(b)
    shape = b.shape(0)
    axis = int_attribute(b.node, "axis", 0) % len(shape)
    indices = b.constant(1).astype(np.int64)
    flat = indices.reshape(-1) % shape[axis]
    dy = reshape(b.g, b.dy, (*shape[:axis], flat.size, *shape[axis + 1:]))
    if np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)):
        before, after = [0] * len(shape), [0] * len(shape)
        before[axis], after[axis] = int(flat[0]), int(shape[axis] - 1 - flat[-1])
        return [pad(b.g, dy, before, after), None]
    # Any other constant index: a 0/1 matrix adds each picked row to the place it came from.
    one_hot = np.zeros((shape[axis], flat.size), dtype_of(dy).numpy())
    one_hot[flat, np.arange(flat.size)] = 1
    inner = int(np.prod(shape[axis + 1:], dtype=np.int64))
    rows = reshape(b.g, dy, (*shape[:axis], flat.size, inner))
    return [reshape(b.g, b.g.op("MatMul", b.g.constant(one_hot), rows), shape), None]


def _gather_elements(b: Backward) -> Gradients:
    picked = b.weight(1) if at_hand(b.node.inputs[1]) else b.saved("rows")
    start = zeros(b.g, b.shape(0), b.dy)
    return [b.g.op("ScatterElements", start, picked, b.dy, reduction="add",
                   axis=int_attribute(b.node, "axis", 0)), None]


def _depth_to_space(b: Backward) -> Gradients:
    block = int_attribute(b.node, "blocksize", 1)
    if b.node.attributes.get_string("mode", "DCR") == "DCR":
        return [b.g.op("SpaceToDepth", b.dy, blocksize=block)]
    # CRD: [N, C, H, b, W, b] -> [N, C, b, b, H, W]
    n, c, h, w = b.shape(0)
    g, inner = b.g, c // block**2
    blocks = reshape(g, b.dy, (n, inner, h, block, w, block))
    return [reshape(g, g.op("Transpose", blocks, perm=[0, 1, 3, 5, 2, 4]), (n, c, h, w))]


def _space_to_depth(b: Backward) -> Gradients:
    block = int_attribute(b.node, "blocksize", 1)
    return [b.g.op("DepthToSpace", b.dy, blocksize=block, mode="DCR")]


def _tile(b: Backward) -> Gradients:
    shape, repeats = b.shape(0), [int(r) for r in b.constant(1)]
    split = [n for pair in zip(repeats, shape, strict=True) for n in pair]
    axes = [2 * i for i in range(len(shape))]
    total = b.g.op("ReduceSum", reshape(b.g, b.dy, split), b.g.constant(axes), keepdims=0)
    return [total, None]


def _cumsum(b: Backward) -> Gradients:
    backwards = 1 - int_attribute(b.node, "reverse", 0)
    axis = b.g.constant(np.asarray(b.constant(1).reshape(()), np.int64))
    return [b.g.op("CumSum", b.dy, axis, reverse=backwards,
                   exclusive=int_attribute(b.node, "exclusive", 0)), None]


RULES = {
    ("", "Reshape"): Rule(_like_input),
    ("", "Flatten"): Rule(_like_input),
    ("", "Squeeze"): Rule(_like_input),
    ("", "Unsqueeze"): Rule(_like_input),
    ("", "Transpose"): Rule(_transpose),
    ("", "Expand"): Rule(_expand),
    ("", "Concat"): Rule(_concat),
    ("", "Split"): Rule(_split),
    ("", "Slice"): Rule(_slice, refuses=constant_operands(1, 2, 3, 4)),
    ("", "Gather"): Rule(_gather, _gather_forward, _gather_refuses),
    ("", "GatherElements"): Rule(_gather_elements, _gather_forward),
    ("", "DepthToSpace"): Rule(_depth_to_space),
    ("", "SpaceToDepth"): Rule(_space_to_depth),
    ("", "Tile"): Rule(_tile, refuses=constant_operands(1)),
    ("", "CumSum"): Rule(_cumsum, refuses=constant_operands(1)),
}
