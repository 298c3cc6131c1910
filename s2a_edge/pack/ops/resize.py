"""Resize: linear along each axis, whatever its mode, so the backward is a matrix for each axis.

The matrix of an axis is what the operator makes of unit vectors along it: coordinate transforms,
rounding and borders need no second implementation.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.capture.static_shapes import evaluate
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.rule import Backward, Gradients, Rule, constant_operands, reshape

_REGION, _SCALES, _SIZES = 1, 2, 3


def _axes(node: ir.Node, rank: int) -> list[int]:
    axes = node.attributes.get_ints("axes")
    return [a % rank for a in axes] if axes else list(range(rank))


def _matrix(b: Backward, axis: int) -> np.ndarray:
    """[in, out] float32: row i is the output along ``axis`` for a one at position i.

    Run on the last axis of [1, 1, in, in], the form that every kernel takes.
    """
    given = _SIZES if _given(b.node, _SIZES) else _SCALES
    number = b.constant(given)[_axes(b.node, len(b.shape(0))).index(axis)]
    size = b.shape(0)[axis]
    rest = [1, 1, size] if given == _SIZES else [1.0, 1.0, 1.0]
    numbers = np.asarray([*rest, number], np.int64 if given == _SIZES else np.float32)
    inputs: list[ir.Value | None] = [_constant("x", np.eye(size, dtype=np.float32)[None, None]),
                                     None, None, None]
    inputs[given] = _constant("numbers", numbers)
    kept = [a for name, a in b.node.attributes.items() if name != "axes"]
    node = ir.Node("", "Resize", inputs[: given + 1], kept, num_outputs=1, name=b.node.name)
    node.outputs[0].name = "rows"
    return evaluate(node)[0].reshape(size, -1)


def _constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(array, name=name))


def _given(node: ir.Node, index: int) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is not None and (value.const_value is None or value.const_value.size > 0)


def _backward(b: Backward) -> Gradients:
    # Y = X M along an axis, so dX = dY Mᵀ
    dx = b.dy
    for axis, (size, out) in enumerate(zip(b.shape(0), b.out_shape(), strict=True)):
        matrix = _matrix(b, axis) if axis in _axes(b.node, len(b.shape(0))) else np.eye(size)
        if size == out and np.array_equal(matrix, np.eye(size)):
            continue
        dx = _shrink(b, dx, axis, matrix)
    return [dx, *[None] * (len(b.needs) - 1)]


def _shrink(b: Backward, dy: ir.Value, axis: int, matrix: np.ndarray) -> ir.Value:
    """``dy`` times the transposed ``matrix`` [in, out] along ``axis``."""
    g, (size, out) = b.g, matrix.shape
    shape = list(shape_of(dy))
    before, after = shape[:axis], shape[axis + 1:]
    if np.array_equal(matrix, np.kron(np.eye(size), np.ones((1, out // size)))):
        # Each element was repeated: sum the copies.
        copies = reshape(g, dy, (*before, size, out // size, *after))
        return g.op("ReduceSum", copies, g.constant([axis + 1]), keepdims=0)
    kind = dtype_of(dy).numpy()
    if not after:
        return g.op("MatMul", dy, g.constant(matrix.T.astype(kind)))
    columns = reshape(g, dy, (*before, out, int(np.prod(after))))
    return reshape(g, g.op("MatMul", g.constant(matrix.astype(kind)), columns),
                   (*before, size, *after))


def _refuses(node: ir.Node) -> str | None:
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return "a region of interest"
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    return f"policy {policy}" if policy != "stretch" else constant_operands(_SCALES, _SIZES)(node)


RULES = {("", "Resize"): Rule(_backward, refuses=_refuses)}
