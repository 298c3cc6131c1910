"""Optimal codebooks for derivatives: which cells, and what each decodes to.

An error function e(x) of the decoded derivative costs e' K e, with x in bins and K measured on the
model at hand (``gradient_weights``).

For given cells the best levels solve the normal equations of e' K e, Lloyd's centroid condition
(Lloyd, Least Squares Quantization in PCM, 1957/1982; Max, Quantizing for Minimum Distortion, 1960)
with K for the density: the weighted error in each cell is zero, so the code is unbiased. That the
codebook should be one of the derivative under the distribution of x is Few-bit Backward's (arXiv
2202.00441). The cells are restricted to those that one operator can compute (``compander``), and
found by search.

A codebook may have *exact ends*: the outermost codes decode to g'(-inf) and g'(inf), 0 and 1 for
GELU, whatever the weights say. With 16 levels and more all have; with 8 both kinds are made and a
model may use both, one for each layer; with 4 and 2 exact ends would double the error and more
(measured on a ViT-S/14: ARCHITECTURE.md), so they have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from s2a_edge.pack.codecs.activations import DERIVATIVES, Doubles
from s2a_edge.pack.codecs.compander import Compander
from s2a_edge.pack.codecs.gradient_weights import (
    BINS,
    RANGE,
    REFERENCES,
    Weights,
    bin_centres,
    reference_weights,
)

# Of the weights, so much is the reference's: a few samples do not show everything.
_PRIOR = 0.02
_HARDSWISH_END = 3.0


@dataclass(frozen=True)
class Codebook:
    """Cells and what they decode to.

    Attributes:
        compander: makes the codes.
        levels: the value of g' that each code decodes to.
    """

    compander: Compander
    levels: tuple[float, ...]

    def error(self, function: str, weights: Weights) -> float:
        """Squared error of the bias gradients with this codebook, relative to their square."""
        x = bin_centres()
        slope, moment = DERIVATIVES[function](x), weights.moment
        left = slope - np.array(self.levels)[self.compander.codes(x, len(self.levels))]
        energy = float(slope @ moment @ slope)
        return float(left @ moment @ left) / energy if energy > 0 else 0.0


@lru_cache(maxsize=256)
def design(function: str, levels: int, measured: Weights | None = None, *,
           exact_ends: bool | None = None) -> Codebook:
    """The codebook of least weighted error, for the cells that companders can make.

    Args:
        function: a key of ``activations.DERIVATIVES``.
        levels: number of codes, 2 to 256.
        measured: weights of the model at hand; None: the reference's.
        exact_ends: whether the outermost codes are exact; None: with 8 levels and more.
    """
    reference = REFERENCES[function]
    exact = levels >= 8 if exact_ends is None else exact_ends
    exact |= function == "hardswish" and levels > 2  # g' attains its limits: it costs nothing
    ends = reference.ends if exact else None
    if levels > 64:
        return _fine(function, levels, ends)
    weights = reference_weights(function).moment
    if measured is not None:
        own = Weights.mean([measured], function).moment
        slope = DERIVATIVES[function](bin_centres())
        weights = own + _PRIOR * weights / float(slope @ weights @ slope)
    problem = _Problem.of(function, weights, levels, ends, even=reference.even)
    found = problem.best(_candidates(function, levels))
    if found.map == "ramp" and not (function == "hardswish" and levels > 2):
        found = problem.best(_around(found))
    return Codebook(found, tuple(problem.solve(found)[0].tolist()))


def _fine(function: str, levels: int, ends: tuple[float, float] | None) -> Codebook:
    """Cells finer than the bins: one compander for each function, g' itself for levels."""
    reference = REFERENCES[function]
    if function == "hardswish":
        compander = next(_candidates(function, levels))
    elif reference.even:
        compander = Compander("softsign", 0.92) if function == "softsign" else Compander(
            "abs", {"sigmoid": 10.0, "tanh": 5.0}.get(function, 3.0))
    else:  # the top puts x = 0 into the middle of a cell; g' of elu is 1 above that
        compander = Compander("sigmoid", 0.5 if function == "elu" else 1 - 1 / levels)
    x = np.linspace(-RANGE, RANGE, 24001)
    mass = np.exp(-0.5 * ((x - reference.mean) / (1.5 * reference.deviation)) ** 2)
    codes = compander.codes(x, levels)
    means = np.bincount(codes, mass * DERIVATIVES[function](x), levels) / np.bincount(
        codes, mass, levels)
    if ends is not None:
        means[-1] = ends[1]
        means[0] = means[0] if compander.even else ends[0]
    return Codebook(compander, tuple(means.tolist()))


def _candidates(function: str, levels: int) -> Iterator[Compander]:
    if function == "hardswish" and levels > 2:
        # The one ramp whose outermost cells end at -3 and 3, where g' jumps to 0 and 1.
        end = _HARDSWISH_END * (levels - 1) / (levels - 2)
        yield Compander("ramp", end, -end)
    elif REFERENCES[function].even:
        if function == "softsign":
            yield from (Compander("softsign", high) for high in np.arange(0.4, 1, 0.02).tolist())
        else:
            yield from (Compander("abs", high) for high in np.arange(0.6, 8, 0.1).tolist())
    else:
        yield from (Compander("ramp", high, low) for low in np.arange(-4.0, 1.01, 0.2).tolist()
                    for high in np.arange(-1.0, 4.01, 0.2).tolist() if low < high)
        yield from (Compander("sigmoid", high) for high in np.arange(0.3, 1.01, 0.025).tolist())
        yield from (Compander("tanh", float(zero)) for zero in range(levels // 3, levels - 1)
                    if zero > 0)


def _around(found: Compander) -> Iterator[Compander]:
    shifts = np.linspace(-0.15, 0.15, 7).tolist()
    yield from (Compander("ramp", found.high + b, found.low + a) for a in shifts for b in shifts
                if found.low + a < found.high + b)


@dataclass(frozen=True, eq=False)
class _Problem:
    """One function and its weights, prepared so that a compander is judged by small matrices.

    Attributes:
        x: bins in ascending order; of |x| for an even function.
        slope: g' there.
        levels: number of codes.
        ends: exact outermost levels, or None.
        even: codes are those of |x|, and only the last of them has an exact level.
        zero_inside: x = 0 must not lie at the edge of a cell, where rounding decides.
        sums: [bins + 1, bins + 1] sums of K over leading bins, both ways.
        slope_sums: [bins + 1] of K g'.
        energy: g'' K g'.
    """

    x: Doubles
    slope: Doubles
    levels: int
    ends: tuple[float, float] | None
    even: bool
    zero_inside: bool
    sums: Doubles
    slope_sums: Doubles
    energy: float

    @classmethod
    def of(cls, function: str, moment: Doubles, levels: int, ends: tuple[float, float] | None, *,
           even: bool) -> _Problem:
        x = bin_centres()
        if even:
            half = BINS // 2
            fold = np.vstack([np.eye(half)[::-1], np.eye(half)])
            x, moment = x[half:], fold.T @ moment @ fold
        slope = DERIVATIVES[function](x)
        sums = np.zeros((len(x) + 1, len(x) + 1))
        sums[1:, 1:] = moment.cumsum(0).cumsum(1)
        weighted = moment @ slope
        return cls(x, slope, levels, ends, even, function != "hardswish" and not even, sums,
                   np.concatenate([[0.0], weighted.cumsum()]), float(slope @ weighted))

    def best(self, candidates: Iterator[Compander]) -> Compander:
        return min(candidates, key=lambda c: self.solve(c)[1] if self._may(c) else np.inf)

    def _may(self, compander: Compander) -> bool:
        at_zero = float(compander.position(np.zeros(1), self.levels)[0]) % 1.0
        return not self.zero_inside or abs(at_zero - 0.5) > 0.02

    def solve(self, compander: Compander) -> tuple[Doubles, float]:
        """(what each code decodes to, the weighted squared error)."""
        codes = compander.codes(self.x, self.levels)
        edges = np.searchsorted(codes, np.arange(self.levels + 1))
        block = np.diff(np.diff(self.sums[np.ix_(edges, edges)], axis=0), axis=1)
        target = np.diff(self.slope_sums[edges])
        levels, free = np.zeros(self.levels), np.ones(self.levels, bool)
        if self.ends is not None:
            levels[-1], free[-1] = self.ends[1], False
            if not self.even:
                levels[0], free[0] = self.ends[0], False
        inner = block[np.ix_(free, free)]
        ridge = 1e-9 * (np.trace(inner) or 1.0) * np.eye(len(inner))
        centre = np.interp(np.arange(self.levels), codes, self.slope)[free]  # of unseen cells
        levels[free] = np.linalg.solve(
            inner + ridge, (target - block @ levels)[free] + ridge @ centre)
        error = self.energy - 2 * float(levels @ target) + float(levels @ block @ levels)
        return levels, error


__all__ = ["Codebook", "design"]
