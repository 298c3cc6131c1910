"""Which elements share a scale, and how scales are stored: one bfloat16 per group or row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.words import flatten, unflatten
from s2a_edge.spec.lowbit import FLOAT16_MAX, bfloat16_below, round_to_bfloat16

NEIGHBOURS = 32
_LONGEST_GROUP = 256
# Keeps reciprocals finite; smaller groups decode to zero.
TINY = 2.0**-100


@dataclass(frozen=True)
class Grouping:
    """A value seen as [outer, size, inner]; the elements along ``size`` share a scale.

    Tokens of one sample and channel form a group where there are at least 32 of them:
    [B, T, C] -> (B, T, C), [B, 14, 14, C] -> (B, 196, C). Channels of transformers differ in
    magnitude far more than tokens do, so this beats groups of 32 neighbouring channels although
    it stores a fraction of their scales. Other values are grouped by 32 neighbours in C order,
    (N / 32, 32, 1), or by a size near 32 that divides N, so that nothing needs padding.
    """

    outer: int
    size: int
    inner: int

    @classmethod
    def of(cls, shape: Shape) -> Grouping:
        """The grouping of a value of ``shape``."""
        count = count_of(shape)
        tokens = _tokens(shape)
        if tokens >= NEIGHBOURS:
            size = _group_length(tokens)
            return cls(count // (size * shape[-1]), size, shape[-1])
        near = sorted(range(NEIGHBOURS // 2, 2 * NEIGHBOURS + 1),
                      key=lambda size: (abs(size - NEIGHBOURS), size))
        size = next((size for size in near if count % size == 0), NEIGHBOURS)
        return cls(-(-count // size), size, 1)

    @property
    def shape(self) -> Shape:
        """(outer, size, inner)."""
        return self.outer, self.size, self.inner

    @property
    def scales(self) -> int:
        """Number of groups."""
        return self.outer * self.inner

    @property
    def elements(self) -> int:
        """Number of elements, padding included."""
        return self.scales * self.size

    def view(self, g: GraphBuilder, x: ir.Value) -> ir.Value:
        """``x`` as [outer, size, inner]; padded with zeros where that is needed."""
        return g.op("Reshape", flatten(g, x, self.size * self.inner),
                    g.constant(list(self.shape)))

    def restore(self, g: GraphBuilder, groups: ir.Value, shape: Shape) -> ir.Value:
        """The inverse of :meth:`view`."""
        return unflatten(g, groups, shape)

    def view_array(self, x: Array) -> Array:
        """:meth:`view` in numpy."""
        flat = np.pad(x.reshape(-1).astype(np.float32), (0, self.elements - x.size))
        return flat.reshape(self.shape)


def _tokens(shape: Shape) -> int:
    """Tokens of one sample; 0 where no axes look like them.

    The axis before the last. Where it is short and the last is long enough to be channels (so
    not in NCHW, whose last two are about equal), the axes before it belong to it, down to the
    batch.
    """
    if len(shape) < 2:
        return 0
    tokens = shape[-2]
    if shape[-1] < NEIGHBOURS:
        return tokens
    for extent in reversed(shape[1:-2]):
        if tokens >= NEIGHBOURS:
            break
        tokens *= extent
    return tokens


def _group_length(tokens: int) -> int:
    """Tokens per group: all of them, or the largest divisor up to 256 where they are many."""
    if tokens <= _LONGEST_GROUP:
        return tokens
    divisors = (d for d in range(_LONGEST_GROUP, NEIGHBOURS - 1, -1) if tokens % d == 0)
    return next(divisors, tokens)


def row_size(shape: Shape) -> int:
    """Elements per row: the trailing axes that together have at least 32 elements."""
    size = 1
    for extent in reversed(shape):
        size *= extent
        if size >= NEIGHBOURS:
            break
    return size


def extremes(g: GraphBuilder, groups: ir.Value, *, keepdims: bool = True,
             ) -> tuple[ir.Value, ir.Value]:
    """(largest, smallest) along axis 1; two reductions and no copy of ``groups``."""
    axis = g.constant([1])
    return (g.op("ReduceMax", groups, axis, keepdims=int(keepdims)),
            g.op("ReduceMin", groups, axis, keepdims=int(keepdims)))


def magnitude(g: GraphBuilder, groups: ir.Value, *, keepdims: bool = True) -> ir.Value:
    """Largest magnitude along axis 1."""
    high, low = extremes(g, groups, keepdims=keepdims)
    return g.op("Max", high, g.op("Neg", low))


def store_bfloat16(g: GraphBuilder, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(bfloat16 to be stored, the same numbers in float32 for the encoder to use)."""
    stored = g.op("Cast", value, to=int(ir.DataType.BFLOAT16))
    return stored, load_bfloat16(g, stored)


def load_bfloat16(g: GraphBuilder, stored: ir.Value) -> ir.Value:
    """Stored numbers in float32."""
    return g.op("Cast", stored, to=int(ir.DataType.FLOAT))


def store_scale(g: GraphBuilder, largest: ir.Value, factor: float, reach: int,
                ) -> tuple[ir.Value, ir.Value]:
    """``largest * factor``, never zero, as :func:`store_bfloat16`.

    Where values are kept in float16, so small that ``reach``, the largest code, decodes to one:
    rounded up, a scale of values near 65504 would give infinity.
    """
    scale = g.op("Mul", largest, g.constant(float(factor)))
    scale = g.op("Max", scale, g.constant(TINY))
    if g.half:
        scale = g.op("Min", scale, g.constant(bfloat16_below(FLOAT16_MAX / reach)))
    return store_bfloat16(g, scale)


def reference_scale(largest: Array, factor: float) -> Array:
    """:func:`store_scale` in numpy."""
    scale = largest.astype(np.float32) * np.float32(factor)
    return round_to_bfloat16(np.maximum(scale, np.float32(TINY)))


__all__ = ["NEIGHBOURS", "TINY", "Grouping", "extremes", "load_bfloat16", "magnitude",
           "reference_scale", "row_size", "store_bfloat16", "store_scale"]
