"""Two to eight bits with one scale per group: LayerNorm's x-hat, q, k, v and anything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
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
from s2a_edge.pack.codecs.words import lookup_words, pack_rounded, words_bytes
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.native_ops import CODES_PER_WORD, native
from s2a_edge.spec.lowbit import SCALE_BYTES, round_to_bfloat16

# Where the outermost level lies, relative to the group's farthest element: few elements of a group
# of tokens are near the farthest. Measured on a ViT-S/14 (bench_codecs.py) by the gradient error.
# A scale by standard deviation, as would suit normal values, is several times worse at any number
# of bits: a few outliers carry much of what the backward needs.
_OUTER_LEVEL = {2: 0.8, 3: 0.9}
# Where a group is nearly constant, the step is bounded below in units of its centre, so that
# x / step stays exact enough to subtract from.
_LEAST_STEP = 2.0**-16
# Ends of a group where values are kept in float16: rounding of centre and step to bfloat16 moves
# them by up to 2**-8 of themselves, which stays below 65504.
_HALF_END = 65024.0


@dataclass(frozen=True)
class SymmetricCodec:
    """4 or 8 bits: -L..L times max|x| / L of the group, L = 7 or 127; zero is exact.

    The error is at most max|x| / 2L.
    """

    width: int = 4

    @property
    def name(self) -> str:
        """``symmetric4``, ``symmetric8``."""
        return f"symmetric{self.width}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    @property
    def _limit(self) -> int:
        return (1 << self.width - 1) - 1

    @property
    def _reach(self) -> int:
        """The largest code: int8 saturates at -128."""
        return 128 if self.width == 8 else self._limit

    def _is_native(self, g: GraphBuilder, grouping: Grouping) -> bool:
        return g.native and self.width == 4 and grouping.inner % CODES_PER_WORD == 0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """(words, scales bfloat16 [outer, 1, inner])."""
        grouping = Grouping.of(shape_of(x))
        groups = grouping.view(g, x)
        if self._is_native(g, grouping):
            size, inner = grouping.size, grouping.inner
            largest = native(g, "AbsoluteMaxima", groups, shape=(grouping.outer, 1, inner),
                             size=size, inner=inner)
            stored, scale = store_scale(g, largest, 1 / self._limit, self._reach)
            words = native(g, "PackColumns", groups, g.op("Reciprocal", scale),
                           shape=(grouping.elements // CODES_PER_WORD,), size=size, inner=inner,
                           offset=self._limit + 1)
            return words, stored
        stored, scale = store_scale(g, magnitude(g, groups), 1 / self._limit, self._reach)
        units = g.op("Mul", groups, g.op("Reciprocal", scale))
        if self.width == 8:
            zero = g.constant(np.zeros((), np.int8))
            return g.op("QuantizeLinear", units, g.constant(1.0), zero), stored
        return pack_rounded(g, units, 1.0, self._limit + 1, self.width), stored

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Level times scale."""
        grouping = Grouping.of(shape)
        if self.width == 8:
            units = g.op("DequantizeLinear", stored[0], g.constant(1.0))
        else:
            levels = np.arange(1 << self.width, dtype=np.float32) - np.float32(self._limit + 1)
            if self._is_native(g, grouping):
                groups = native(g, "UnpackColumns", *stored, shape=grouping.shape,
                                size=grouping.size, inner=grouping.inner,
                                levels=[float(x) for x in levels])
                return grouping.restore(g, groups, shape)
            units = lookup_words(g, stored[0], levels, grouping.shape)
        return grouping.restore(g, g.op("Mul", units, load_bfloat16(g, stored[1])), shape)

    def stored_bytes(self, shape: Shape) -> int:
        """Words and scales."""
        grouping = Grouping.of(shape)
        codes = grouping.elements if self.width == 8 \
            else words_bytes(grouping.elements, self.width)
        return codes + grouping.scales * SCALE_BYTES

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        groups = Grouping.of(x.shape).view_array(x)
        scale = reference_scale(np.abs(groups).max(1, keepdims=True), 1 / self._limit)
        decoded: Array = np.rint(groups * (np.float32(1) / scale)) * scale
        return decoded.reshape(-1)[: x.size].reshape(x.shape)


@dataclass(frozen=True)
class AsymmetricCodec:
    """Equal steps over the span of the group, for values with an offset such as q, k and v.

    x ~ centre + (code - top / 2) * step, both in bfloat16. The step is stretched for what
    rounding moves the centre (at most 2**-8 of it). Error at most half a step; at 2 and 3 bits
    what lies farthest is up to 0.4 of a step beyond the outer levels.
    """

    width: int

    @property
    def name(self) -> str:
        """``asymmetric2`` to ``asymmetric5``."""
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
        return self._half / _OUTER_LEVEL.get(self.width, 1.0)

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """(words, steps bfloat16 [outer, 1, inner], centres bfloat16 [outer, 1, inner])."""
        groups = Grouping.of(shape_of(x)).view(g, x)
        high, low = extremes(g, groups)
        if g.half:
            high = g.op("Min", high, g.constant(_HALF_END))
            low = g.op("Max", low, g.constant(-_HALF_END))
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
        return pack_rounded(g, units, 1.0, 0, self.width), stored_step, stored_centre

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
