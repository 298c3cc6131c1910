"""The derivative g'(x) of an elementwise activation, kept as a code of the pre-activation x.

Encoding does not compute g' (seven passes for GELU). A *compander*, one or two cheap operators,
maps x to [0, top]; equal cells of that are the codes; each code decodes to the mean of g' over
its cell. GELU, SiLU and their like use sigmoid(x), which spends its cells where g' bends, and
cut it at x ~ 1.1: pre-activations beyond that are rare, and their g' lies in [1, 1.13].
Even derivatives are coded by |x|.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from s2a_edge.pack.codecs.activations import DERIVATIVES, Doubles, sigmoid
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.words import lookup_words, pack_words, round_to_codes, words_bytes
from s2a_edge.pack.graph import GraphBuilder


def _softsign(x: Doubles) -> Doubles:
    return x / (1.0 + np.abs(x))


_STEPS: dict[str, Callable[[Doubles], Doubles]] = {
    "Sigmoid": sigmoid, "Abs": np.abs, "Softsign": _softsign,
}
# HardSwish's own bend: x in (-3, 3) maps to the inner codes, all else to the outermost two.
_RAMP = "HardSigmoid"
_RAMP_END = 3.0


@dataclass(frozen=True)
class Compander:
    """Operators applied to x in turn, and the result that gets the highest code.

    Attributes:
        steps: ONNX operators of one input; their result is at least 0.
        top: larger results saturate to the highest code, at 2 and 4 bits.
        top8: the same at 8 bits, where the far ends matter too.
        mean: of the pre-activations for which the default levels are means.
        deviation: standard deviation of the same.
    """

    steps: tuple[str, ...]
    top: float
    top8: float
    mean: float
    deviation: float

    def top_of(self, width: int) -> float:
        """The top at ``width`` bits."""
        return self.top8 if width == 8 else self.top


# Ends of the range of sigmoid that put x = 0 in the middle of a cell: on a boundary, rounding would
# decide which of two codes it gets.
_SIGMOID_TOP, _SIGMOID_TOP8 = 15 / 16, 255 / 256

# Tops have the least error over the reference distribution (in steps of a twentieth), by squared
# error plus squared mean error per unit, since a unit's mean error adds up over its tokens.
# The reference of rectifier-like functions is broader than, and as skewed as, the
# pre-activations measured on a ViT-S/14 (mean -0.85, deviation 0.94).
_RECTIFIER = Compander(("Sigmoid",), 0.75, _SIGMOID_TOP8, -0.7, 1.2)
COMPANDERS: dict[str, Compander] = {
    "gelu": _RECTIFIER,
    "gelu_tanh": _RECTIFIER,
    "silu": Compander(("Sigmoid",), 0.85, _SIGMOID_TOP8, -0.7, 1.5),
    "mish": Compander(("Sigmoid",), 0.75, _SIGMOID_TOP8, -0.7, 1.5),
    "elu": Compander(("Sigmoid",), 0.5, 0.5, 0.0, 1.5),
    "hardswish": Compander((_RAMP,), 1.0, 1.0, 0.0, 2.0),
    "softplus": Compander(("Sigmoid",), _SIGMOID_TOP, _SIGMOID_TOP8, 0.0, 2.0),
    "sigmoid": Compander(("Abs",), 4.0, 10.0, 0.0, 2.0),
    "tanh": Compander(("Abs",), 2.25, 5.0, 0.0, 1.2),
    "erf": Compander(("Abs",), 1.75, 3.0, 0.0, 1.0),
    "softsign": Compander(("Abs", "Softsign"), 0.8, 0.92, 0.0, 1.5),
}


@dataclass(frozen=True)
class DerivativeCodec:
    """g'(x) of ``function`` at 2, 4 or 8 bits; no scales are stored.

    Attributes:
        function: a key of ``activations.DERIVATIVES``.
        width: bits.
        fitted: levels fitted to a model's own pre-activations (:meth:`fit`); the default
            levels are used where it is empty.
    """

    function: str
    width: int
    fitted: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """``gelu4``, or ``gelu4_fitted``."""
        return f"{self.function}{self.width}{'_fitted' if self.fitted else ''}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    @property
    def _highest(self) -> int:
        return (1 << self.width) - 1

    @property
    def levels(self) -> Array:
        """float32 [2**width]: what each code decodes to."""
        levels = self.fitted or _default_levels(self.function, self.width)
        return np.array(levels, np.float32)

    def fit(self, samples: Array) -> DerivativeCodec:
        """The same codec with levels that are means over ``samples``, pre-activations."""
        x = samples.reshape(-1).astype(np.float64)
        default = np.array(_default_levels(self.function, self.width))
        fitted = _cell_means(self.function, self.width, x, np.ones_like(x), default)
        return DerivativeCodec(self.function, self.width, fitted)

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """Packed words."""
        compander = COMPANDERS[self.function]
        value = x
        for step in compander.steps:
            if step == _RAMP:
                value = g.op(step, value, alpha=_ramp_slope(self.width), beta=0.5)
            else:
                value = g.op(step, value)
        step_size = compander.top_of(self.width) / self._highest
        codes = round_to_codes(g, value, step_size, top=self._highest)
        return (pack_words(g, codes, self.width),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """The level of each code."""
        return lookup_words(g, stored[0], self.levels, shape)

    def stored_bytes(self, shape: Shape) -> int:
        """The packed words."""
        return words_bytes(count_of(shape), self.width)

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        return self.levels[_codes(self.function, self.width, x.astype(np.float64))]


def _ramp_slope(width: int) -> float:
    """Puts x = -3 and 3 where the outermost codes round to their neighbours."""
    return (0.5 - 0.5 / ((1 << width) - 1)) / _RAMP_END


def _codes(function: str, width: int, x: Doubles) -> NDArray[np.int64]:
    highest = (1 << width) - 1
    compander = COMPANDERS[function]
    for step in compander.steps:
        x = np.clip(x * _ramp_slope(width) + 0.5, 0.0, 1.0) if step == _RAMP else _STEPS[step](x)
    return np.clip(np.rint(x * (highest / compander.top_of(width))), 0, highest).astype(np.int64)


def _cell_means(function: str, width: int, x: Doubles, mass: Doubles, default: Doubles,
                ) -> tuple[float, ...]:
    """The mean of g' over each cell; ``default`` where a cell has no mass."""
    codes = _codes(function, width, x)
    total = np.bincount(codes, mass, 1 << width)
    sums = np.bincount(codes, mass * DERIVATIVES[function](x), 1 << width)
    return tuple(float(v) for v in np.where(total > 0, sums / np.maximum(total, 1e-300), default))


@lru_cache(maxsize=64)
def _default_levels(function: str, width: int) -> tuple[float, ...]:
    """Levels for normally distributed pre-activations, by a sum over a fine grid.

    The distribution is the compander's. The grid leaves no cell empty.
    """
    compander = COMPANDERS[function]
    x = np.linspace(-12.0, 12.0, 24001)
    mass = np.exp(-0.5 * ((x - compander.mean) / compander.deviation) ** 2)
    return _cell_means(function, width, x, mass, np.full(1 << width, np.nan))


__all__ = ["COMPANDERS", "Compander", "DerivativeCodec"]
