"""Values kept as they are (32 bits) or in half precision (16 bits)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.spec.lowbit import FLOAT16_MAX


@dataclass(frozen=True)
class KeepCodec:
    """float32, as it is; no nodes."""

    name: str = "float32"
    bits: float = 32.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """The value itself."""
        return (x,)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """The value itself."""
        return stored[0]

    def stored_bytes(self, shape: Shape) -> int:
        """Four bytes an element."""
        return 4 * count_of(shape)

    def reference(self, x: Array) -> Array:
        """``x``."""
        return x.astype(np.float32)


@dataclass(frozen=True)
class HalfCodec:
    """float16; relative error at most 2**-11. Larger numbers than 65504 saturate."""

    name: str = "float16"
    bits: float = 16.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """A saturating cast."""
        clipped = g.op("Clip", x, g.constant(-FLOAT16_MAX), g.constant(FLOAT16_MAX))
        return (g.op("Cast", clipped, to=int(ir.DataType.FLOAT16)),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """A cast."""
        return g.op("Cast", stored[0], to=int(ir.DataType.FLOAT))

    def stored_bytes(self, shape: Shape) -> int:
        """Two bytes an element."""
        return 2 * count_of(shape)

    def reference(self, x: Array) -> Array:
        """The same saturating cast."""
        return np.clip(x, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).astype(np.float32)


__all__ = ["HalfCodec", "KeepCodec"]
