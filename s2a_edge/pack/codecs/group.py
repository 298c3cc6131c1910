"""Four and two bits with one scale per small group: LayerNorm's x-hat, q, k, v, anything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.scales import (
    group_size,
    largest,
    reference_scale,
    rows_of,
    stored_scale,
)
from s2a_edge.pack.codecs.words import (
    flatten,
    lookup_words,
    pack_words,
    round_to_codes,
    unflatten,
    words_bytes,
)
from s2a_edge.pack.graph import GraphBuilder, shape_of
from s2a_edge.spec.lowbit import SCALE_BYTES


@dataclass(frozen=True)
class SymmetricGroupCodec:
    """Levels -L..L (L = 2**(width-1) - 1) times the group's scale; zero is exact.

    Groups are neighbours in C order: [N] -> [N / 32, 32].
    """

    width: int

    @property
    def name(self) -> str:
        """``symmetric4``, ..."""
        return f"symmetric{self.width}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    @property
    def _limit(self) -> int:
        return (1 << (self.width - 1)) - 1

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """(words, scales bfloat16 [G, 1])."""
        size = group_size(count_of(shape_of(x)))
        rows = g.op("Reshape", flatten(g, x, size), g.constant([-1, size]))
        stored, scale = stored_scale(g, largest(g, rows), self._limit)
        units = g.op("Mul", rows, g.op("Reciprocal", scale))
        codes = round_to_codes(g, units, 1.0, self._limit + 1)
        return pack_words(g, codes, self.width), stored

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Level times scale."""
        size = group_size(count_of(shape))
        levels = np.arange(1 << self.width, dtype=np.float32) - (self._limit + 1)
        units = lookup_words(g, stored[0], levels, (rows_of(shape, size), size))
        scale = g.op("Cast", stored[1], to=int(ir.DataType.FLOAT))
        return unflatten(g, g.op("Mul", units, scale), shape)

    def stored_bytes(self, shape: Shape) -> int:
        """Words and scales."""
        size = group_size(count_of(shape))
        groups = rows_of(shape, size)
        return words_bytes(groups * size, self.width) + groups * SCALE_BYTES

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        size = group_size(x.size)
        flat = np.pad(x.reshape(-1).astype(np.float32), (0, -x.size % size))
        rows = flat.reshape(-1, size)
        scale = reference_scale(np.abs(rows).max(1, keepdims=True), self._limit)
        units = np.rint(rows * (np.float32(1) / scale))
        return (units * scale).reshape(-1)[: x.size].reshape(x.shape)




__all__ = ["SymmetricGroupCodec"]
