"""Eight bits with one scale per row (a token's channels)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.scales import (
    largest,
    reference_scale,
    row_size,
    rows_of,
    stored_scale,
)
from s2a_edge.pack.graph import GraphBuilder, shape_of
from s2a_edge.spec.lowbit import SCALE_BYTES

_LIMIT = 127.0


@dataclass(frozen=True)
class RowCodec:
    """int8 in [-127, 127] times the row's scale; error at most half a step, max / 254.

    Quantizes along an axis, so that neither side needs a float copy.
    """

    name: str = "row8"
    bits: float = 8.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """(int8 [R, n], scales bfloat16 [R, 1])."""
        shape = shape_of(x)
        size = row_size(shape)
        rows = g.op("Reshape", x, g.constant([rows_of(shape, size), size]))
        stored, scale = stored_scale(g, largest(g, rows), _LIMIT)
        return g.op("QuantizeLinear", rows, *_axis_scale(g, scale), axis=0), stored

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Level times scale."""
        scale = g.op("Cast", stored[1], to=int(ir.DataType.FLOAT))
        rows = g.op("DequantizeLinear", stored[0], *_axis_scale(g, scale), axis=0)
        return g.op("Reshape", rows, g.constant(np.array(shape, np.int64)))

    def stored_bytes(self, shape: Shape) -> int:
        """Codes and scales."""
        return count_of(shape) + rows_of(shape, row_size(shape)) * SCALE_BYTES

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        rows = x.reshape(-1, row_size(x.shape)).astype(np.float32)
        scale = reference_scale(np.abs(rows).max(1, keepdims=True), _LIMIT)
        return (np.rint(rows / scale) * scale).reshape(x.shape)


def _axis_scale(g: GraphBuilder, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    """[R, 1] -> scale [R] and int8 zero points [R] for a quantizer along axis 0."""
    count = count_of(shape_of(scale))
    return (g.op("Reshape", scale, g.constant([-1])),
            g.constant(np.zeros(count, np.int8)))


__all__ = ["RowCodec"]
