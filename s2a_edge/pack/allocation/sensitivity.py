"""How much error of the gradients each saved value causes at each number of bits.

A value's error is measured with every other value exact. Errors of different values are nearly
independent - codes are unbiased, and a layer's rounding knows nothing of another's - so their
squares add up; ``tests/pack/allocation`` and BENCHMARKS.md hold the measured sum against the
prediction. At 8 bits and more an error is too small to be worth a run: it is taken from that at 4
bits by the ratio of the squared errors of the value itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2a_edge.pack.allocation.gauge import Doubles, Gauge
from s2a_edge.pack.allocation.options import Codecs, bits_of

_MOST_MEASURED_BITS = 4

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
        for key in gauge.points:
            _measure_value(gauge, key, codecs, alone, followed)
    return Sensitivity(gauge.trainables, norms, alone, followed, codecs, samples)


def _measure_value(gauge: Gauge, key: str, codecs: Codecs,
                   alone: dict[tuple[str, int], Doubles],
                   followed: dict[tuple[str, int], Doubles]) -> None:
    saved = gauge.points[key].saved
    followers = [p for p, leaves in gauge.leaves.items() if key in leaves]
    last: tuple[float, list[tuple[dict[tuple[str, int], Doubles], Doubles]]] | None = None
    for bits in bits_of(saved):
        if bits == 32:
            continue
        decoded = gauge.decoded(key, codecs.codec(key, saved.kind, bits, saved.shape))
        value_error = _squared_difference(decoded.numpy(), gauge.exact(key).numpy())
        if bits <= _MOST_MEASURED_BITS:
            errors = [(alone, gauge.error({key: decoded}))]
            if followers:
                changed = {key: decoded}
                again = {p: gauge.again(p, changed) for p in followers}
                errors.append((followed, gauge.error({**changed, **again})))
            last = value_error, errors
        else:
            assert last is not None
            ratio = value_error / last[0] if last[0] > 0 else 0.0
            errors = [(table, ratio * error) for table, error in last[1]]
        for table, error in errors:
            table[key, bits] = table.get((key, bits), 0.0) + error


def _squared_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    difference = (a - b).reshape(-1).astype(np.float64)
    return float(difference @ difference)


__all__ = ["Feeds", "Sensitivity", "measure"]
