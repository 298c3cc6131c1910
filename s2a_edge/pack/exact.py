"""Saving with nothing compressed: what ``--bits 32`` means, and the reference of the rehearsal.

Every value is kept as the runtime has it; derivatives are computed in the backward from the kept
pre-activation, as an ordinary framework does. Works in float32 and float64, so the rules can be
checked by finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array
from s2a_edge.pack.codecs.mask import mask_bounds
from s2a_edge.pack.codecs.plain import HalfCodec
from s2a_edge.pack.graph import dtype_of
from s2a_edge.pack.rule import scalar
from s2a_edge.spec.errors import InternalError


def _affine(g: GraphBuilder, x: ir.Value, slope: float, offset: float) -> ir.Value:
    return g.op("Add", g.op("Mul", x, scalar(g, slope, x)), scalar(g, offset, x))


def _gelu(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # g' = Φ(x) + x φ(x)
    erf = g.op("Erf", g.op("Mul", x, scalar(g, math.sqrt(0.5), x)))
    density = g.op("Exp", g.op("Mul", g.op("Mul", x, x), scalar(g, -0.5, x)))
    slope = g.op("Mul", g.op("Mul", x, density), scalar(g, 1 / math.sqrt(2 * math.pi), x))
    return g.op("Add", _affine(g, erf, 0.5, 0.5), slope)


def _gelu_tanh(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # t = tanh(c (x + a x³)): g' = (1 + t)/2 + x (1 - t²) c (1 + 3 a x²) / 2
    c, a = math.sqrt(2 / math.pi), 0.044715
    square = g.op("Mul", x, x)
    inner = g.op("Mul", x, _affine(g, square, c * a, c))
    t = g.op("Tanh", inner)
    rest = _affine(g, g.op("Mul", t, t), -0.5, 0.5)
    bend = g.op("Mul", g.op("Mul", x, rest), _affine(g, square, 3 * a * c, c))
    return g.op("Add", _affine(g, t, 0.5, 0.5), bend)


def _sigmoid(g: GraphBuilder, x: ir.Value) -> ir.Value:
    y = g.op("Sigmoid", x)
    return g.op("Mul", y, _affine(g, y, -1.0, 1.0))


def _tanh(g: GraphBuilder, x: ir.Value) -> ir.Value:
    y = g.op("Tanh", x)
    return _affine(g, g.op("Mul", y, y), -1.0, 1.0)


def _erf(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Mul", g.op("Exp", g.op("Neg", g.op("Mul", x, x))),
                scalar(g, 2 / math.sqrt(math.pi), x))


def _hardswish(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # 0 below -3, 1 above 3, x/3 + 1/2 between: not monotone, so two masks and no clip
    inside = g.op("Cast", g.op("Less", g.op("Abs", x), scalar(g, 3.0, x)), to=int(dtype_of(x)))
    above = g.op("Cast", g.op("GreaterOrEqual", x, scalar(g, 3.0, x)), to=int(dtype_of(x)))
    return g.op("Add", above, g.op("Mul", inside, _affine(g, x, 1 / 3, 0.5)))


def _silu(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # s = σ(x): g' = s (1 + x (1 - s))
    s = g.op("Sigmoid", x)
    return g.op("Mul", s, _affine(g, g.op("Mul", x, _affine(g, s, -1.0, 1.0)), 1.0, 1.0))


def _elu(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Exp", g.op("Min", x, scalar(g, 0.0, x)))


def _softplus(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Sigmoid", x)


def _mish(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # t = tanh(softplus(x)): g' = t + x (1 - t²) σ(x)
    t = g.op("Tanh", g.op("Softplus", x))
    rest = _affine(g, g.op("Mul", t, t), -1.0, 1.0)
    return g.op("Add", t, g.op("Mul", g.op("Mul", x, rest), g.op("Sigmoid", x)))


def _softsign(g: GraphBuilder, x: ir.Value) -> ir.Value:
    root = _affine(g, g.op("Abs", x), 1.0, 1.0)
    return g.op("Reciprocal", g.op("Mul", root, root))


def _mask(g: GraphBuilder, x: ir.Value, bounds: str) -> ir.Value:
    low, high = mask_bounds(bounds)
    inside = g.op("Greater", x, scalar(g, low, x))
    if high is not None:
        inside = g.op("And", inside, g.op("Less", x, scalar(g, high, x)))
    return g.op("Cast", inside, to=int(dtype_of(x)))


EMITTED: dict[str, Callable[[GraphBuilder, ir.Value], ir.Value]] = {
    "gelu": _gelu, "gelu_tanh": _gelu_tanh, "sigmoid": _sigmoid, "tanh": _tanh, "erf": _erf,
    "hardswish": _hardswish, "softplus": _softplus, "mish": _mish, "softsign": _softsign,
    "silu": _silu, "elu": _elu,
}


@dataclass(frozen=True)
class ExactCodec:
    """Keeps a value as it is; ``kind`` says what the backward wants to see.

    Attributes:
        kind: as in ``rule.Forward.save``.
    """

    kind: str
    name: str = "float32"
    bits: float = 32.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """The value itself, no node."""
        return (x,)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: tuple[int, ...],
               ) -> ir.Value:
        """The value, its derivative, or its mask."""
        family, _, function = self.kind.partition(":")
        if family == "derivative":
            if function not in EMITTED:
                raise InternalError(where=self.kind, expected="a known function", got=function,
                                    todo="report this")
            return EMITTED[function](g, stored[0])
        return _mask(g, stored[0], function) if family == "mask" else stored[0]

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Four bytes an element."""
        return 4 * math.prod(shape)

    def reference(self, x: Array) -> Array:
        """The value; derivatives and masks have their own tests."""
        return np.asarray(x, np.float32)


@dataclass(frozen=True)
class HalfDerivative:
    """A derivative at 16 bits: the pre-activation in float16, the derivative computed from it."""

    kind: str
    name: str = "float16"
    bits: float = 16.0

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """A saturating cast to float16."""
        return HalfCodec().encode(g, x)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: tuple[int, ...],
               ) -> ir.Value:
        """g'(x) in float32."""
        return ExactCodec(self.kind).decode(g, (HalfCodec().decode(g, stored, shape),), shape)

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Two bytes an element."""
        return 2 * math.prod(shape)

    def reference(self, x: Array) -> Array:
        """The pre-activation as it is kept."""
        return HalfCodec().reference(x)
