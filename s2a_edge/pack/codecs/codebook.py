"""Optimal codebooks for derivatives: which cells, and what each decodes to.

What counts is not the error of g' but what it does to gradients. The bias gradient of a unit u is
the sum over its tokens of dy g'(x), so an error function e(x) of the decoded derivative costs

    sum over u of (sum over tokens of dy e(x))^2  =  e' K e,

with x in bins and K the second moment of the gradient that falls into them, measured on the model
at hand. It says two things that a distribution of x alone would not: where gradients are small
errors are free, and an error that a unit makes at all its tokens adds up, so a unit that is always
off must decode to very nearly nothing.

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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from s2a_edge.pack.codecs.activations import DERIVATIVES, Doubles
from s2a_edge.pack.codecs.compander import Compander

_BINS, _RANGE = 480, 12.0
# Of the weights, so much is that of errors which do not add up, and so much the reference's: a few
# samples do not show everything.
_INCOHERENT, _PRIOR = 0.02, 0.02
_HARDSWISH_END = 3.0


@dataclass(frozen=True)
class Reference:
    """Pre-activations where none were measured, and the limits of g'.

    Attributes:
        mean, deviation: of all pre-activations, normally distributed. GELU's are those of a
            ViT-S/14, weighted by the gradient, are -0.84 and 0.93 over 12 layers; the reference is
            broader, which costs that model nothing (gradient error 3.33 against 3.40 %, 112 px)
            and spares one with weights as drawn two thirds of the angle (0.0016 against 0.0053).
            Those of SiLU and Mish are broader still.
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


@dataclass(frozen=True)
class Codebook:
    """Cells and what they decode to.

    Attributes:
        compander: makes the codes.
        levels: the value of g' that each code decodes to.
    """

    compander: Compander
    levels: tuple[float, ...]


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
        where = np.arange(units) * _BINS + bins
        sums = np.bincount(where.ravel(), weights.ravel(), units * _BINS).reshape(units, _BINS)
        single = np.bincount(bins.ravel(), np.square(weights).ravel(), _BINS)
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

    def error(self, function: str, book: Codebook) -> float:
        """Squared error of the bias gradients with ``book``, relative to their square."""
        x = bin_centres()
        slope = DERIVATIVES[function](x)
        left = slope - np.array(book.levels)[book.compander.codes(x, len(book.levels))]
        energy = float(slope @ self.moment @ slope)
        return float(left @ self.moment @ left) / energy if energy > 0 else 0.0


def bin_centres() -> Doubles:
    """float64 [480]: the middles of the bins."""
    edges = np.linspace(-_RANGE, _RANGE, _BINS + 1)
    return np.asarray((edges[1:] + edges[:-1]) / 2)


def bins_of(x: NDArray[np.floating]) -> NDArray[np.int64]:
    """The bin of every value."""
    scaled = np.clip((x.astype(np.float64) + _RANGE) * (_BINS / (2 * _RANGE)), 0, _BINS - 1)
    return scaled.astype(np.int64)


@lru_cache(maxsize=32)
def reference_weights(function: str) -> Weights:
    """K of the reference: units whose means spread as widely as their own values do.

    Half of what a unit's error does is taken to add up over its tokens.
    """
    reference, x = REFERENCES[function], bin_centres()
    spread = reference.deviation / 2**0.5
    nodes, shares = np.polynomial.hermite_e.hermegauss(31)
    moment = np.zeros((_BINS, _BINS))
    for node, share in zip(nodes, shares / shares.sum(), strict=True):
        mass = np.exp(-0.5 * ((x - reference.mean - spread * node) / spread) ** 2)
        mass /= mass.sum()
        moment += 0.5 * share * (np.outer(mass, mass) + np.diag(mass))
    return Weights(moment)


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
    x = np.linspace(-_RANGE, _RANGE, 24001)
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
            half = _BINS // 2
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


__all__ = ["REFERENCES", "Codebook", "Reference", "Weights", "bin_centres", "design",
           "reference_weights"]
