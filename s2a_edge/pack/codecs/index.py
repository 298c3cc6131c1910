"""Small integers, such as the position of a maximum in its pooling window; exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.words import (
    flatten,
    lookup_words,
    pack_words,
    unflatten,
    words_bytes,
)


@dataclass(frozen=True)
class IndexCodec:
    """float32 integers in [0, 2**width), width 1, 2, 4 or 8 bits."""

    width: int

    @property
    def name(self) -> str:
        """``index2``, ..."""
        return f"index{self.width}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """Packed words; at 8 bits uint8 [N]."""
        if self.width == 8:
            return (g.op("Cast", flatten(g, x), to=int(ir.DataType.UINT8)),)
        return (pack_words(g, x, self.width),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """The integers as float32."""
        if self.width == 8:
            return unflatten(g, g.op("Cast", stored[0], to=int(ir.DataType.FLOAT)), shape)
        return lookup_words(g, stored[0], np.arange(1 << self.width, dtype=np.float32), shape)

    def stored_bytes(self, shape: Shape) -> int:
        """The packed words."""
        count = count_of(shape)
        return count if self.width == 8 else words_bytes(count, self.width)

    def reference(self, x: Array) -> Array:
        """``x``."""
        return x.astype(np.float32)


__all__ = ["IndexCodec"]
