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

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.scales import TINY
from s2a_edge.pack.codecs.words import lookup_words, pack_words, words_bytes
from s2a_edge.pack.graph import shape_of


@dataclass(frozen=True)
class ProbabilityCodec:
    """Probabilities over the last axis at 2, 3, 4 or 8 bits."""

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
        # The largest of a row is at least 1/N, so its root's 255th is safe in float16.
        with g.float32(not g.half):
            return self._encode(g, x)

    def _encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        rows = g.op("Reshape", x, g.constant([-1, shape_of(x)[-1]]))
        top = g.op("ReduceMax", rows, g.constant([1]), keepdims=0)
        step = g.op("Mul", g.op("Sqrt", g.op("Max", top, g.constant(TINY))),
                    g.constant(1 / self._limit))
        if g.in_half:
            units = g.op("Div", g.op("Sqrt", rows), g.op("Unsqueeze", step, g.constant([1])))
            codes = g.op("Round", units)
            if self.width == 8:
                codes = g.op("Cast", codes, to=int(ir.DataType.UINT8))
                return (g.op("Reshape", codes, g.constant([-1])),)
            return (pack_words(g, codes, self.width),)
        # Along an axis, so that no second float copy is made: the quantizer divides.
        codes = g.op("QuantizeLinear", g.op("Sqrt", rows), step, axis=0)
        if self.width == 8:
            return (g.op("Reshape", codes, g.constant([-1])),)
        with g.float32():
            codes = g.op("DequantizeLinear", codes, g.constant(1.0))
        return (pack_words(g, codes, self.width),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Squares, divided by their sum."""
        if g.half:
            return self._decode_half(g, stored, shape)
        with g.float32():
            return self._decode(g, stored, shape)

    def _decode_half(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape,
                     ) -> ir.Value:
        """The same of roots from 0 to 1: a sum of 15² or 255² would exceed float16."""
        if self.width == 8:
            codes = g.op("Cast", stored[0], to=int(ir.DataType.FLOAT))
            roots = g.op("Mul", codes, g.constant(1 / self._limit))
            squares = g.op("Mul", roots, roots)
            squares = g.op("Reshape", squares, g.constant(np.array(shape, np.int64)))
        else:
            levels = (np.arange(1 << self.width, dtype=np.float32) / np.float32(self._limit)) ** 2
            squares = lookup_words(g, stored[0], levels, shape)
        mean = g.op("ReduceMean", squares, g.constant([len(shape) - 1]))
        total = g.op("Mul", mean, g.constant(float(shape[-1])))
        return g.op("Div", squares, g.op("Max", total, g.constant(1 / self._limit**2)))

    def _decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        if self.width == 8:
            roots = g.op("DequantizeLinear", stored[0], g.constant(1.0))
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
        top = np.maximum(x.max(-1, keepdims=True), np.float32(TINY))
        step = np.sqrt(top) * np.float32(1 / self._limit)
        squares = np.rint(np.sqrt(x) / step) ** 2
        total: Array = np.maximum(squares.sum(-1, keepdims=True), np.float32(1))
        decoded: Array = squares / total
        return decoded


__all__ = ["ProbabilityCodec"]
