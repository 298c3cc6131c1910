"""Optimal codebooks for derivatives: which cells, and what each decodes to.

Given how the pre-activations x are distributed, each weighted by the square of the gradient that
will be multiplied with g'(x), the expected error of the gradient is the weighted squared error of
the decoded derivative. For given cells its minimum is Lloyd's centroid condition: each cell
decodes to the weighted mean of g' in it, which also makes it unbiased (Lloyd, Least Squares
Quantization in PCM, 1957/1982; Max, Quantizing for Minimum Distortion, 1960). That the codebook
should be one of the derivative, under the distribution of x, is Few-bit Backward's (arXiv
2202.00441). The cells are restricted to those that one operator can compute (``compander``);
the best of them are found by search.

With 16 levels or more the outermost codes decode to g'(-inf) and g'(inf) exactly, 0 and 1 for
GELU: a unit that is off passes exactly nothing, and one that is on everything. What bias this
makes is taken back by a shift of the other levels. With 8 or 4 levels that would double the
squared error (measured on a ViT-S/14: BENCHMARKS.md), so there all levels are means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from s2a_edge.pack.codecs.activations import DERIVATIVES, Doubles
from s2a_edge.pack.codecs.compander import Compander

_EXACT_ENDS_FROM_LEVELS = 16
_BINS, _RANGE = 1200, 12.0
# So much of the reference distribution is mixed in: a few samples do not show everything.
_PRIOR = 0.02
_HARDSWISH_END = 3.0


@dataclass(frozen=True)
class Reference:
    """Normally distributed pre-activations, where none were measured, and the limits of g'.

    Attributes:
        mean, deviation: of the pre-activations. GELU's are those of a ViT-S/14, weighted by the
            gradient (-0.84 and 0.93 over 12 layers); those of SiLU and Mish are broader.
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
    "gelu": Reference(-0.85, 0.95, _RECTIFIER),
    "gelu_tanh": Reference(-0.85, 0.95, _RECTIFIER),
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


@dataclass(frozen=True)
class Codebook:
    """Cells and what they decode to.

    Attributes:
        compander: makes the codes.
        levels: the value of g' that each code decodes to.
    """

    compander: Compander
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Histogram:
    """Weighted distribution of pre-activations: mass of equal bins of [-12, 12], summing to 1."""

    mass: tuple[float, ...]

    @classmethod
    def of(cls, x: NDArray[np.floating], weight: NDArray[np.floating] | None = None) -> Histogram:
        """Of values ``x``; larger ones count at the ends. ``weight`` has the shape of ``x``."""
        flat = np.clip(x.reshape(-1).astype(np.float64), -_RANGE, _RANGE)
        made, _ = np.histogram(flat, _BINS, (-_RANGE, _RANGE),
                               weights=None if weight is None else weight.reshape(-1))
        total = float(made.sum())
        return cls(tuple((made / total).tolist()) if total > 0 else (0.0,) * _BINS)

    @classmethod
    def mean(cls, parts: list[Histogram]) -> Histogram:
        """The average distribution."""
        return cls(tuple(np.mean([part.mass for part in parts], axis=0).tolist()))


def bin_centres() -> Doubles:
    """float64 [1200]: the middles of a histogram's bins."""
    edges = np.linspace(-_RANGE, _RANGE, _BINS + 1)
    return np.asarray((edges[1:] + edges[:-1]) / 2)


def _reference_mass(reference: Reference) -> Doubles:
    mass = np.exp(-0.5 * ((bin_centres() - reference.mean) / reference.deviation) ** 2)
    return np.asarray(mass / mass.sum())


@lru_cache(maxsize=256)
def design(function: str, levels: int, measured: Histogram | None = None) -> Codebook:
    """The codebook of least weighted squared error, for the cells that companders can make.

    Args:
        function: a key of ``activations.DERIVATIVES``.
        levels: number of codes.
        measured: distribution of the pre-activations; None: the reference's.
    """
    reference = REFERENCES[function]
    mass = _reference_mass(reference)
    if measured is not None:
        mass = (1 - _PRIOR) * np.array(measured.mass) + _PRIOR * mass
    x = bin_centres()
    problem = _Problem(x, mass, DERIVATIVES[function](x), levels, reference.ends,
                       symmetric=function == "hardswish")
    found = problem.best(_candidates(function, levels))
    if found.map == "ramp" and function != "hardswish":
        found = problem.best(_around(found, levels))
    return Codebook(found, tuple(problem.levels_of(found)[0].tolist()))


def _candidates(function: str, levels: int) -> Iterator[Compander]:
    if function == "hardswish" and levels > 2:
        # The one ramp whose outermost cells end at -3 and 3, where g' jumps to 0 and 1.
        end = _HARDSWISH_END * (levels - 1) / (levels - 2)
        yield Compander("ramp", end, -end)
    elif REFERENCES[function].even:
        kind: tuple[float, ...] = (0.98, 0.95, 0.92, *np.arange(0.9, 0.4, -0.05).tolist())
        if function == "softsign":
            yield from (Compander("softsign", high) for high in kind)
        else:
            yield from (Compander("abs", high) for high in np.arange(0.75, 12.1, 0.25).tolist())
    else:
        yield from (Compander("ramp", high, low) for low in np.arange(-4.0, 1.01, 0.25).tolist()
                    for high in np.arange(-1.0, 4.01, 0.25).tolist() if low < high)
        yield from (Compander("sigmoid", high)
                    for high in (1 - 1 / levels, *np.arange(0.3, 1.01, 0.025).tolist()))
        yield from (Compander("tanh", float(zero)) for zero in range(levels // 3, levels - 1))


def _around(found: Compander, levels: int) -> Iterator[Compander]:
    shifts = np.linspace(-0.2, 0.2, 9).tolist()
    yield from (Compander("ramp", found.high + b, found.low + a) for a in shifts for b in shifts
                if found.low + a < found.high + b)


@dataclass(frozen=True)
class _Problem:
    """The weighted distribution of one function, and how good a compander is for it.

    Attributes:
        x, mass, slope: bins, their mass, g' in them.
        levels: number of codes.
        ends: g'(-inf) and g'(inf), to be exact; or None.
        symmetric: x = 0 may be the edge of a cell.
    """

    x: Doubles
    mass: Doubles
    slope: Doubles
    levels: int
    ends: tuple[float, float] | None
    symmetric: bool

    def best(self, candidates: Iterator[Compander]) -> Compander:
        return min(candidates, key=self.cost)

    def cost(self, compander: Compander) -> float:
        """The weighted squared error; infinite where x = 0 lies at the edge of a cell."""
        at_zero = float(compander.position(np.zeros(1), self.levels)[0]) % 1.0
        if abs(at_zero - 0.5) < 0.02 and not self.symmetric:
            return math.inf  # rounding would decide which of two codes a zero gets
        levels, codes = self.levels_of(compander)
        return float(self.mass @ np.square(self.slope - levels[codes]))

    def levels_of(self, compander: Compander) -> tuple[Doubles, NDArray[np.int64]]:
        """(what each code decodes to, the code of each bin)."""
        codes = compander.codes(self.x, self.levels)
        total = np.bincount(codes, self.mass, self.levels)
        sums = np.bincount(codes, self.mass * self.slope, self.levels)
        filled = np.flatnonzero(total > 0)
        levels = np.interp(np.arange(self.levels), filled, sums[filled] / total[filled])
        if self.ends is None or self.levels < _EXACT_ENDS_FROM_LEVELS:
            return levels, codes
        inner = np.ones(self.levels, bool)
        levels[-1], inner[-1] = self.ends[1], False
        if not compander.even:
            levels[0], inner[0] = self.ends[0], False
        bias = float(total @ levels - sums.sum())
        if (inside := float(total[inner].sum())) > 0:
            levels[inner] -= bias / inside
        return levels, codes


__all__ = ["REFERENCES", "Codebook", "Histogram", "Reference", "bin_centres", "design"]
