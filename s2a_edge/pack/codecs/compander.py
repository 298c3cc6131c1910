"""Cheap monotone maps that turn a pre-activation into one of a few codes.

One operator (two where the derivative is even and heavy-tailed) maps x to a bounded range whose
equal cells are the codes; rounding and saturation are one quantizer. Encoding by comparing with
arbitrary thresholds would take a pass for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.activations import Doubles, sigmoid
from s2a_edge.pack.codecs.words import pack_rounded

Map = Literal["ramp", "sigmoid", "tanh", "abs", "softsign"]


@dataclass(frozen=True)
class Compander:
    """x to codes 0 .. ``levels`` - 1.

    Attributes:
        map: ``ramp``: linear between ``low`` and ``high``, the first and the last code beyond;
            ``sigmoid``, ``abs`` and ``softsign`` (both of |x|): from 0 to ``high``, the last code
            beyond; ``tanh``: from -1, tanh(0) = 0 in the middle of code ``high``, an integer.
        high: see ``map``.
        low: of a ramp.
    """

    map: Map
    high: float
    low: float = 0.0

    def emit(self, g: GraphBuilder, x: ir.Value, bits: int) -> ir.Value:
        """The packed codes of ``x`` at 2**bits levels."""
        top = (1 << bits) - 1
        if self.map == "ramp":
            span = self.high - self.low
            ramp = g.op("HardSigmoid", x, alpha=1 / span, beta=-self.low / span)
            return pack_rounded(g, ramp, 1 / top, 0, bits)
        if self.map == "tanh":
            return pack_rounded(g, g.op("Tanh", x), 1 / self.high, int(self.high), bits)
        if self.map == "sigmoid":
            value = g.op("Sigmoid", x)
        else:
            value = g.op("Abs", x)
            value = g.op("Softsign", value) if self.map == "softsign" else value
        return pack_rounded(g, value, self.high / top, 0, bits)

    def position(self, x: Doubles, levels: int) -> Doubles:
        """The code before it is rounded and saturated."""
        top = levels - 1
        if self.map == "ramp":
            return np.clip((x - self.low) / (self.high - self.low), 0.0, 1.0) * top
        if self.map == "tanh":
            return (np.tanh(x) + 1.0) * self.high
        value = sigmoid(x) if self.map == "sigmoid" else np.abs(x)
        value = value / (1.0 + value) if self.map == "softsign" else value
        return value * (top / self.high)

    def codes(self, x: Doubles, levels: int) -> NDArray[np.int64]:
        """The codes in numpy."""
        return np.clip(np.rint(self.position(x, levels)), 0, levels - 1).astype(np.int64)

    @property
    def even(self) -> bool:
        """Whether x and -x get the same code."""
        return self.map in ("abs", "softsign")


__all__ = ["Compander", "Map"]
