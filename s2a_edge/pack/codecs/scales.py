"""Scales that are stored beside codes: one bfloat16 per group or row."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.graph import GraphBuilder
from s2a_edge.spec.lowbit import round_to_bfloat16

GROUP = 32
# Below this a group counts as zero: its reciprocal stays finite.
_TINY = 2.0**-100
_SHORTEST_ROW = 32


def group_size(count: int) -> int:
    """Elements per group: 32, or a divisor of ``count`` near it, so that nothing is padded."""
    near = sorted(range(GROUP // 2, 2 * GROUP + 1), key=lambda size: (abs(size - GROUP), size))
    return next((size for size in near if count % size == 0), GROUP)


def row_size(shape: Shape) -> int:
    """Elements per row: the trailing axes that together have at least 32 elements."""
    size = 1
    for extent in reversed(shape):
        size *= extent
        if size >= _SHORTEST_ROW:
            break
    return size


def largest(g: GraphBuilder, rows: ir.Value) -> ir.Value:
    """Largest magnitude of each row, [R, n] -> [R, 1]; two reductions, no copy of ``rows``."""
    high = g.op("ReduceMax", rows, g.constant([1]))
    low = g.op("ReduceMin", rows, g.constant([1]))
    return g.op("Max", high, g.op("Neg", low))


def stored_scale(g: GraphBuilder, magnitude: ir.Value, limit: float) -> tuple[ir.Value, ir.Value]:
    """``magnitude / limit`` as (bfloat16 to be stored, the same number in float32)."""
    scale = g.op("Mul", magnitude, g.constant(1.0 / limit))
    scale = g.op("Max", scale, g.constant(_TINY))
    stored = g.op("Cast", scale, to=int(ir.DataType.BFLOAT16))
    return stored, g.op("Cast", stored, to=int(ir.DataType.FLOAT))


def reference_scale(magnitude: Array, limit: float) -> Array:
    """:func:`stored_scale` in numpy."""
    scale = magnitude.astype(np.float32) * np.float32(1.0 / limit)
    return round_to_bfloat16(np.maximum(scale, np.float32(_TINY)))


def rows_of(shape: Shape, size: int) -> int:
    """How many rows of ``size`` cover ``shape``."""
    return -(-count_of(shape) // size)


__all__ = ["GROUP", "group_size", "largest", "reference_scale", "row_size", "rows_of",
           "stored_scale"]
