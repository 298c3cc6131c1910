"""The derivative g'(x) of an elementwise activation, kept as a code of the pre-activation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.codecs.activations import DERIVATIVES
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.words import (
    flatten,
    lookup_words,
    pack_words,
    round_to_codes,
    unflatten,
    words_bytes,
)
from s2a_edge.pack.graph import GraphBuilder


@dataclass(frozen=True)
class DerivativeCodec:
    """Cells of equal width in sigmoid(x); each decodes to the mean derivative in its cell."""

    function: str
    width: int

    @property
    def name(self) -> str:
        """``gelu4``, ..."""
        return f"{self.function}{self.width}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    def levels(self) -> Array:
        """float32 [2**width]: the mean of g' over each cell, x ~ N(-0.7, 1.6)."""
        x = np.linspace(-9.0, 9.0, 36001)
        mass = np.exp(-0.5 * ((x + 0.7) / 1.6) ** 2)
        top = (1 << self.width) - 1
        cell = np.rint(top / (1.0 + np.exp(-x))).astype(int)
        total = np.bincount(cell, mass, top + 1)
        sums = np.bincount(cell, mass * DERIVATIVES[self.function](x), top + 1)
        return (sums / total).astype(np.float32)

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """Packed words; at 8 bits uint8 [N]."""
        top = (1 << self.width) - 1
        folded = g.op("Sigmoid", x)
        if self.width == 8:
            codes = g.op("QuantizeLinear", folded, g.constant(1.0 / top),
                         g.constant(np.zeros((), np.uint8)))
            return (flatten(g, codes),)
        return (pack_words(g, round_to_codes(g, folded, 1.0 / top, 0), self.width),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """g' at each code."""
        if self.width == 8:
            index = g.op("Cast", stored[0], to=int(ir.DataType.INT32))
            return unflatten(g, g.op("Gather", g.constant(self.levels()), index), shape)
        return lookup_words(g, stored[0], self.levels(), shape)

    def stored_bytes(self, shape: Shape) -> int:
        """The packed words."""
        count = count_of(shape)
        return count if self.width == 8 else words_bytes(count, self.width)

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        top = (1 << self.width) - 1
        codes = np.rint(top / (1.0 + np.exp(-x.astype(np.float64)))).astype(int)
        return self.levels()[codes]


__all__ = ["DerivativeCodec"]
