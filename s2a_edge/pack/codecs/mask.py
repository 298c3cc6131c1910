"""One bit per element for derivatives that are 0 or 1: ReLU and its clipped relatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.words import lookup_words, pack_words, words_bytes


def mask_bounds(detail: str) -> tuple[float, float | None]:
    """(low, high) of the kind ``mask:LOW:HIGH``; (0, None) for ``mask`` alone, as of ReLU.

    An endless HIGH is ``inf``. Raises ValueError for anything else.
    """
    if not detail:
        return 0.0, None
    low, _, high = detail.partition(":")
    return float(low), None if float(high) == math.inf else float(high)


@dataclass(frozen=True)
class MaskCodec:
    """``inside`` where low < x < high, ``outside`` elsewhere; exact.

    Input and output of ReLU (low 0) or ReLU6 (low 0, high 6) give the same mask.
    """

    low: float = 0.0
    high: float | None = None
    inside: float = 1.0
    outside: float = 0.0
    name: str = "mask1"
    bits: float = 1.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """uint8 [ceil(N / 8)]."""
        mask = g.op("Greater", x, g.constant(self.low))
        if self.high is not None:
            mask = g.op("And", mask, g.op("Less", x, g.constant(self.high)))
        return (pack_words(g, g.op("Cast", mask, to=int(ir.DataType.FLOAT)), 1),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """``inside`` or ``outside`` as float32."""
        levels = np.array([self.outside, self.inside], np.float32)
        return lookup_words(g, stored[0], levels, shape)

    def stored_bytes(self, shape: Shape) -> int:
        """One bit an element, whole bytes."""
        return words_bytes(count_of(shape), 1)

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        mask = x > np.float32(self.low)
        if self.high is not None:
            mask &= x < np.float32(self.high)
        return np.where(mask, self.inside, self.outside).astype(np.float32)


__all__ = ["MaskCodec", "mask_bounds"]
