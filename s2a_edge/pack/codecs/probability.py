"""Softmax outputs: square-root companding, and rows that sum to one again after decoding.

Most attention probabilities lie far below 1/15, so that a linear code loses them; the code is the
root, ``q = round(L * sqrt(p / max p))``. A row of the true softmax gradient sums to zero, which
only holds for rows that sum to one: decoding is ``q**2 / sum(q**2)``. This also makes the row's
scale superfluous, so none is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.words import (
    flatten,
    lookup_words,
    pack_words,
    round_to_codes,
    words_bytes,
)
from s2a_edge.pack.graph import GraphBuilder, shape_of

_TINY = 2.0**-100


@dataclass(frozen=True)
class ProbabilityCodec:
    """Probabilities over the last axis at 2, 4 or 8 bits."""

    width: int

    @property
    def name(self) -> str:
        """``probability4``, ..."""
        return f"probability{self.width}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    @property
    def _limit(self) -> int:
        return (1 << self.width) - 1

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """Packed words; at 8 bits uint8 [N]."""
        top = g.op("ReduceMax", x, g.constant([len(shape_of(x)) - 1]))
        gain = g.op("Div", g.constant(float(self._limit)),
                    g.op("Sqrt", g.op("Max", top, g.constant(_TINY))))
        units = g.op("Mul", g.op("Sqrt", x), gain)
        if self.width == 8:
            codes = g.op("QuantizeLinear", units, g.constant(1.0),
                         g.constant(np.zeros((), np.uint8)))
            return (flatten(g, codes),)
        return (pack_words(g, round_to_codes(g, units, 1.0), self.width),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Squares, divided by their sum."""
        if self.width == 8:
            roots = g.op("DequantizeLinear", stored[0], g.constant(1.0),
                         g.constant(np.zeros((), np.uint8)))
            squares = g.op("Mul", roots, roots)
            squares = g.op("Reshape", squares, g.constant(np.array(shape, np.int64)))
        else:
            levels = np.arange(1 << self.width, dtype=np.float32) ** 2
            squares = lookup_words(g, stored[0], levels, shape)
        total = g.op("ReduceSum", squares, g.constant([len(shape) - 1]))
        return g.op("Div", squares, g.op("Max", total, g.constant(1.0)))

    def stored_bytes(self, shape: Shape) -> int:
        """The packed words."""
        count = count_of(shape)
        return count if self.width == 8 else words_bytes(count, self.width)

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        top = np.maximum(x.max(-1, keepdims=True), np.float32(_TINY))
        gain = np.float32(self._limit) / np.sqrt(top)
        squares = np.rint(np.sqrt(x) * gain) ** 2
        total: Array = np.maximum(squares.sum(-1, keepdims=True), np.float32(1))
        decoded: Array = squares / total
        return decoded


__all__ = ["ProbabilityCodec"]
