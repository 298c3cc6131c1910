"""How much error of the gradients each saved value causes at each number of bits.

A value's error is measured with every other value exact. Errors of different values are nearly
independent - codes are unbiased, and a layer's rounding knows nothing of another's - so their
squares add up; ``tests/pack/allocation`` and BENCHMARKS.md hold the measured sum against the
prediction. Runs are made at 2 and 4 bits. The errors at other widths follow from these and from the
error of the value itself, which costs no run: 3 bits lie between, 1 bit and 8 beyond.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2a_edge.pack.allocation.gauge import Doubles, Gauge
from s2a_edge.pack.allocation.options import Codecs, axis_of_units, bits_of, ties_of

_MEASURED_BITS = (2, 4)

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Sensitivity:
    """Squared gradient errors over all batches that were measured.

    Attributes:
        trainables: their names.
        norms: squared norms of the exact gradients, one for each trainable.
        alone: (key, bits) -> squared errors, one for each trainable.
        followed: the same where attention probabilities are recomputed from the value.
        codecs: what the values were coded with.
        samples: how many.
    """

    trainables: tuple[str, ...]
    norms: Doubles
    alone: Mapping[tuple[str, int], Doubles]
    followed: Mapping[tuple[str, int], Doubles]
    codecs: Codecs
    samples: int

    def among(self, keys: Collection[str], trainables: Collection[str]) -> Sensitivity:
        """Of these values and trainables alone: what a step saves where fewer blocks train."""
        at = [i for i, name in enumerate(self.trainables) if name in trainables]
        alone, followed = ({k: squared[at] for k, squared in table.items() if k[0] in keys}
                           for table in (self.alone, self.followed))
        return Sensitivity(tuple(self.trainables[i] for i in at), self.norms[at], alone, followed,
                           self.codecs, self.samples)

    def relative(self, squared: Doubles) -> float:
        """Squared errors as a share of the squared gradient, all trainables as one vector."""
        return float(squared.sum() / (self.norms.sum() or 1.0))


def measure(gauge: Gauge, batches: Iterable[Feeds], codecs: Codecs, batch: int) -> Sensitivity:
    """Runs every value through every codec, one at a time."""
    norms = np.zeros(len(gauge.trainables))
    alone: dict[tuple[str, int], Doubles] = {}
    followed: dict[tuple[str, int], Doubles] = {}
    samples = 0
    for feeds in batches:
        norms += gauge.begin(feeds)
        samples += batch
        for tie in ties_of(point.saved for point in gauge.points.values()):
            _measure_values(gauge, tie, codecs, alone, followed)
    return Sensitivity(gauge.trainables, norms, alone, followed, codecs, samples)


def _measure_values(gauge: Gauge, tie: tuple[str, ...], codecs: Codecs,
                    alone: dict[tuple[str, int], Doubles],
                    followed: dict[tuple[str, int], Doubles]) -> None:
    """Of one value, or of those that are tied to it; the first names them all."""
    key, saved = tie[0], gauge.points[tie[0]].saved
    widths = [bits for bits in bits_of(saved) if bits != 32]
    if not widths:
        return
    followers = [p for p, leaves in gauge.leaves.items() if key in leaves]
    tables = (alone, followed) if followers else (alone,)
    local: dict[int, float] = {}
    runs: dict[int, list[Doubles]] = {}
    for bits in widths:
        changed = {k: gauge.decoded(k, codecs.codec(
            k, saved.kind, bits, gauge.points[k].saved.shape)) for k in tie}
        local[bits] = sum(_local_error(gauge, k, v.numpy()) for k, v in changed.items())
        if bits in _MEASURED_BITS:
            runs[bits] = [gauge.error(changed)]
            if followers:
                again = {p: gauge.again(p, changed) for p in followers}
                runs[bits].append(gauge.error({**changed, **again}))
    for bits in widths:
        for at, table in enumerate(tables):
            error = _estimated(bits, local, {b: errors[at] for b, errors in runs.items()})
            table[key, bits] = table.get((key, bits), 0.0) + error


def _local_error(gauge: Gauge, key: str, decoded: NDArray[np.float32]) -> float:
    """Squared error of the value; of a derivative, of what it does to its units' bias gradients."""
    point = gauge.points[key]
    error = decoded - gauge.exact(key).numpy()
    gradient = gauge.incoming(key)
    if gradient is None:
        flat = error.reshape(-1)
        return float(np.dot(flat, flat))
    error *= gradient.numpy()
    units = np.moveaxis(error, axis_of_units(point.saved.shape), -1).sum(
        axis=tuple(range(error.ndim - 1)), dtype=np.float64)
    return float(units @ units)


def _estimated(bits: int, local: Mapping[int, float], runs: Mapping[int, Doubles]) -> Doubles:
    """The gradient errors at ``bits``: measured, or after the local errors.

    Between two measured widths by a power law through both, beyond them in proportion.
    """
    low, high = min(runs), max(runs)
    if bits in runs:
        return runs[bits]
    if low < bits < high and 0 < local[high] < local[bits] < local[low]:
        share = (np.log(local[bits] / local[high])) / np.log(local[low] / local[high])
        tiny = np.finfo(np.float64).tiny
        return np.asarray(np.exp(share * np.log(runs[low] + tiny)
                                 + (1 - share) * np.log(runs[high] + tiny)))
    nearest = low if bits < low else high
    return runs[nearest] * (local[bits] / local[nearest] if local[nearest] > 0 else 0.0)


__all__ = ["Feeds", "Sensitivity", "measure"]
