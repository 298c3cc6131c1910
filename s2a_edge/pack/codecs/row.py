"""Eight bits with one scale per row (a token's channels)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.scales import (
    load_bfloat16,
    magnitude,
    reference_scale,
    row_size,
    store_scale,
)
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.native_ops import NATIVE_DOMAIN, native
from s2a_edge.spec.lowbit import SCALE_BYTES

_LIMIT, _REACH = 127, 128  # int8 saturates at -128


@dataclass(frozen=True)
class RowCodec:
    """int8 in [-127, 127] times the row's scale; error at most half a step, max|x| / 254.

    Quantizes along an axis, so that neither side makes a float copy beside its result.
    """

    name: str = "row8"
    bits: float = 8.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """(int8 [R, n], scales bfloat16 [R])."""
        inner = row_size(shape_of(x))
        if g.native:
            codes, scales = g.multi(
                "QuantizeRows", [x], 2, domain=NATIVE_DOMAIN,
                shape=[count_of(shape_of(x)) // inner, inner], inner=inner)
            return codes, scales
        rows = g.op("Reshape", x, g.constant([-1, inner]))
        # One axis: the runtime takes an element at a time where the last has length 1.
        stored, scale = store_scale(g, magnitude(g, rows, keepdims=False), 1 / _LIMIT, _REACH)
        return g.op("QuantizeLinear", rows, *_along_rows(g, scale), axis=0), stored

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Level times scale."""
        if g.native:
            return native(g, "DequantizeRows", *stored, shape=shape, inner=row_size(shape))
        scale = load_bfloat16(g, stored[1])
        rows = g.op("DequantizeLinear", stored[0], *_along_rows(g, scale), axis=0)
        return g.op("Reshape", rows, g.constant(np.array(shape, np.int64)))

    def stored_bytes(self, shape: Shape) -> int:
        """Codes and scales."""
        return count_of(shape) + count_of(shape) // row_size(shape) * SCALE_BYTES

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        rows = x.reshape(-1, row_size(x.shape)).astype(np.float32)
        scale = reference_scale(np.abs(rows).max(1, keepdims=True), 1 / _LIMIT)
        decoded: Array = np.rint(rows / scale) * scale
        return decoded.reshape(x.shape)


def _along_rows(g: GraphBuilder, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Scale [R] and int8 zero points [R], for a quantizer along axis 0."""
    return scale, g.constant(np.zeros(shape_of(scale), np.int8))


__all__ = ["RowCodec"]
