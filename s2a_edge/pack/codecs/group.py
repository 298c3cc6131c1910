"""Four and two bits with one scale per group: LayerNorm's x-hat, q, k, v and anything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.codecs.codec import Array, Shape
from s2a_edge.pack.codecs.scales import (
    TINY,
    Grouping,
    extremes,
    load_bfloat16,
    magnitude,
    reference_scale,
    store_bfloat16,
    store_scale,
)
from s2a_edge.pack.codecs.words import lookup_words, pack_words, round_to_codes, words_bytes
from s2a_edge.pack.graph import GraphBuilder, shape_of
from s2a_edge.spec.lowbit import SCALE_BYTES, round_to_bfloat16

_WIDTH = 4
_LIMIT = 7
_ZERO_CODE = 8
# Two bits: where the outermost of four levels lies, relative to the group's farthest element. Few
# elements of a group of tokens are near the farthest; measured on a ViT-S/14 (bench_codecs.py).
_OUTER_LEVEL_2 = 0.8
# Where a group is nearly constant, the step is bounded below in units of its centre, so that
# x / step stays exact enough to subtract from.
_LEAST_STEP = 2.0**-16


@dataclass(frozen=True)
class SymmetricCodec:
    """4 bits: -7..7 times max|x| / 7 of the group; zero is exact, error at most max|x| / 14."""

    name: str = "symmetric4"
    bits: float = 4.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """(words, scales bfloat16 [outer, 1, inner])."""
        groups = Grouping.of(shape_of(x)).view(g, x)
        stored, scale = store_scale(g, magnitude(g, groups), 1 / _LIMIT)
        units = g.op("Mul", groups, g.op("Reciprocal", scale))
        return pack_words(g, round_to_codes(g, units, 1.0, _ZERO_CODE), _WIDTH), stored

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Level times scale."""
        grouping = Grouping.of(shape)
        levels = np.arange(1 << _WIDTH, dtype=np.float32) - np.float32(_ZERO_CODE)
        units = lookup_words(g, stored[0], levels, grouping.shape)
        return grouping.restore(g, g.op("Mul", units, load_bfloat16(g, stored[1])), shape)

    def stored_bytes(self, shape: Shape) -> int:
        """Words and scales."""
        grouping = Grouping.of(shape)
        return words_bytes(grouping.elements, _WIDTH) + grouping.scales * SCALE_BYTES

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        groups = Grouping.of(x.shape).view_array(x)
        scale = reference_scale(np.abs(groups).max(1, keepdims=True), 1 / _LIMIT)
        decoded: Array = np.rint(groups * (np.float32(1) / scale)) * scale
        return decoded.reshape(-1)[: x.size].reshape(x.shape)


@dataclass(frozen=True)
class AsymmetricCodec:
    """Equal steps over the span of the group, for values with an offset such as q, k and v.

    x ~ centre + (code - top / 2) * step, both in bfloat16. The step is stretched for what
    rounding moves the centre (at most 2**-8 of it). Error at most half a step; at 2 bits the step
    is reach / 1.875, which leaves 0.4 of a step beyond the outer levels.
    """

    width: int

    @property
    def name(self) -> str:
        """``asymmetric4``, ``asymmetric2``."""
        return f"asymmetric{self.width}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    @property
    def _half(self) -> float:
        """Half of the highest code: the code of the centre."""
        return ((1 << self.width) - 1) / 2

    @property
    def _lowest(self) -> int:
        """The level of code 0 in the table."""
        return -(1 << self.width - 1)

    @property
    def _reach(self) -> float:
        """Steps from the centre to the farthest element, less than half a step past a level."""
        return self._half if self.width == 4 else self._half / _OUTER_LEVEL_2

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """(words, steps bfloat16 [outer, 1, inner], centres bfloat16 [outer, 1, inner])."""
        groups = Grouping.of(shape_of(x)).view(g, x)
        high, low = extremes(g, groups)
        half = g.constant(0.5)
        # Halved before they are added: the sum of two finite ends may not be finite.
        centre = g.op("Add", g.op("Mul", high, half), g.op("Mul", low, half))
        stored_centre, centre = store_bfloat16(g, centre)
        reach = g.op("Max", g.op("Sub", high, centre), g.op("Sub", centre, low))
        step = g.op("Max", g.op("Mul", reach, g.constant(1 / self._reach)),
                    g.op("Mul", g.op("Abs", centre), g.constant(_LEAST_STEP)), g.constant(TINY))
        stored_step, step = store_bfloat16(g, step)
        per_unit = g.op("Reciprocal", step)
        zero = g.op("Sub", g.op("Mul", centre, per_unit), g.constant(self._half))
        units = g.op("Sub", g.op("Mul", groups, per_unit), zero)
        codes = round_to_codes(g, units, 1.0)
        return pack_words(g, codes, self.width), stored_step, stored_centre

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Level times step, plus centre."""
        grouping = Grouping.of(shape)
        # Integer levels, the same as the symmetric codec's, so that both share one table; the
        # half step between them and the true levels goes into the small tensor of centres.
        levels = np.arange(self._lowest, -self._lowest, dtype=np.float32)
        step, centre = (load_bfloat16(g, part) for part in stored[1:])
        shift = g.op("Mul", step, g.constant(-self._half - self._lowest))
        units = lookup_words(g, stored[0], levels, grouping.shape)
        values = g.op("Add", g.op("Mul", units, step), g.op("Add", centre, shift))
        return grouping.restore(g, values, shape)

    def stored_bytes(self, shape: Shape) -> int:
        """Words, steps and centres."""
        grouping = Grouping.of(shape)
        return words_bytes(grouping.elements, self.width) + 2 * grouping.scales * SCALE_BYTES

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        groups = Grouping.of(x.shape).view_array(x)
        high, low = groups.max(1, keepdims=True), groups.min(1, keepdims=True)
        half, middle = np.float32(0.5), np.float32(self._half)
        centre = round_to_bfloat16(high * half + low * half)
        reach = np.maximum(high - centre, centre - low)
        least = np.maximum(np.abs(centre) * np.float32(_LEAST_STEP), np.float32(TINY))
        step = round_to_bfloat16(np.maximum(reach * np.float32(1 / self._reach), least))
        per_unit = np.float32(1) / step
        codes = np.rint(groups * per_unit - (centre * per_unit - middle))
        lowest = np.float32(self._lowest)
        decoded: Array = (codes + lowest) * step + (centre + step * (-middle - lowest))
        return decoded.reshape(-1)[: x.size].reshape(x.shape)


__all__ = ["AsymmetricCodec", "SymmetricCodec"]
