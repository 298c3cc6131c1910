"""What errors of a decoded derivative do to gradients.

What counts is not the error of g' but what it does to gradients. The bias gradient of a unit u is
the sum over its tokens of dy g'(x), so an error function e(x) of the decoded derivative costs

    sum over u of (sum over tokens of dy e(x))^2  =  e' K e,

with x in bins and K the second moment of the gradient that falls into them, measured on the model
at hand. It says two things that a distribution of x alone would not: where gradients are small
errors are free, and an error that a unit makes at all its tokens adds up, so a unit that is always
off must decode to very nearly nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from s2a_edge.pack.codecs.activations import DERIVATIVES, Doubles

BINS, RANGE = 480, 12.0
# Of the weights, so much is that of errors which do not add up: few samples do not show them all.
_INCOHERENT = 0.02


@dataclass(frozen=True)
class Reference:
    """Pre-activations where none were measured, and the limits of g'.

    Attributes:
        mean, deviation: of all pre-activations, normally distributed. Those of GELU in a ViT-S/14,
            weighted by the gradient, are -0.84 and 0.93 over 12 layers; the reference is broader,
            which costs that model nothing (gradient error 3.33 against 3.40 %, 112 px) and spares
            one with weights as drawn two thirds of the angle (0.0016 against 0.0053). Those of
            SiLU and Mish are broader still.
        ends: g'(-inf) and g'(inf); None where g' is still far from them at any usual x.
        even: g'(-x) = g'(x).
    """

    mean: float
    deviation: float
    ends: tuple[float, float] | None
    even: bool = False


_RECTIFIER = (0.0, 1.0)
_BUMP = (0.0, 0.0)
REFERENCES = {
    "gelu": Reference(-0.65, 1.1, _RECTIFIER),
    "gelu_tanh": Reference(-0.65, 1.1, _RECTIFIER),
    "silu": Reference(-0.7, 1.5, _RECTIFIER),
    "mish": Reference(-0.7, 1.5, _RECTIFIER),
    "elu": Reference(0.0, 1.5, _RECTIFIER),
    "hardswish": Reference(0.0, 2.0, _RECTIFIER),
    "softplus": Reference(0.0, 2.0, _RECTIFIER),
    "sigmoid": Reference(0.0, 2.0, _BUMP, even=True),
    "tanh": Reference(0.0, 1.2, _BUMP, even=True),
    "erf": Reference(0.0, 1.0, _BUMP, even=True),
    "softsign": Reference(0.0, 1.5, None, even=True),
}


@dataclass(frozen=True, eq=False)
class Weights:
    """K: what an error of g' at one x, and at two, does to gradients.

    Attributes:
        moment: float64 [480, 480] over equal bins of [-12, 12], symmetric, not negative.
    """

    moment: Doubles

    @classmethod
    def of(cls, x: NDArray[np.floating], dy: NDArray[np.floating], axis: int = -1) -> Weights:
        """Of pre-activations ``x`` and the gradients ``dy`` that meet them, of equal shape.

        ``axis`` is that of the units. Larger x count at the ends.
        """
        units = x.shape[axis]
        bins = bins_of(np.moveaxis(x, axis, -1).reshape(-1, units))
        weights = np.moveaxis(dy, axis, -1).reshape(-1, units).astype(np.float64)
        where = np.arange(units) * BINS + bins
        sums = np.bincount(where.ravel(), weights.ravel(), units * BINS).reshape(units, BINS)
        single = np.bincount(bins.ravel(), np.square(weights).ravel(), BINS)
        coherent: Doubles = np.asarray(sums.T @ sums, np.float64)
        total = float(np.trace(coherent)) or 1.0
        scale = _INCOHERENT * total / (float(single.sum()) or 1.0)
        return cls(np.asarray(coherent + np.diag(scale * single), np.float64))

    @classmethod
    def mean(cls, parts: Iterable[Weights], function: str) -> Weights:
        """The average, each scaled by the gradient that it stands for; none: the reference's."""
        slope = DERIVATIVES[function](bin_centres())
        scaled = [p.moment / energy for p in parts
                  if (energy := float(slope @ p.moment @ slope)) > 0]
        if not scaled:
            return reference_weights(function)
        return cls(np.asarray(np.mean(scaled, axis=0), np.float64))


def bin_centres() -> Doubles:
    """float64 [480]: the middles of the bins."""
    edges = np.linspace(-RANGE, RANGE, BINS + 1)
    return np.asarray((edges[1:] + edges[:-1]) / 2)


def bins_of(x: NDArray[np.floating]) -> NDArray[np.int64]:
    """The bin of every value."""
    scaled = np.clip((x.astype(np.float64) + RANGE) * (BINS / (2 * RANGE)), 0, BINS - 1)
    return scaled.astype(np.int64)


@lru_cache(maxsize=32)
def reference_weights(function: str) -> Weights:
    """K of the reference: units whose means spread as widely as their own values do.

    Half of what a unit's error does is taken to add up over its tokens.
    """
    reference, x = REFERENCES[function], bin_centres()
    spread = reference.deviation / 2**0.5
    nodes, shares = np.polynomial.hermite_e.hermegauss(31)
    moment = np.zeros((BINS, BINS))
    for node, share in zip(nodes, shares / shares.sum(), strict=True):
        mass = np.exp(-0.5 * ((x - reference.mean - spread * node) / spread) ** 2)
        mass /= mass.sum()
        moment += 0.5 * share * (np.outer(mass, mass) + np.diag(mass))
    return Weights(moment)


__all__ = ["BINS", "RANGE", "REFERENCES", "Reference", "Weights", "bin_centres",
           "reference_weights"]
