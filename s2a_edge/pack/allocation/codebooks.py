"""Codebooks for the derivatives of one model, from what its own gradients weigh."""

from __future__ import annotations

from collections.abc import Iterable

from s2a_edge.pack.allocation.gauge import Gauge
from s2a_edge.pack.allocation.options import Codebooks, axis_of_units, bits_of
from s2a_edge.pack.allocation.sensitivity import Feeds
from s2a_edge.pack.codecs.codebook import Codebook, design
from s2a_edge.pack.codecs.gradient_weights import Weights

# Whether the outermost codes are exact. At three bits layers differ in what is better, and take
# one or the other; a codebook of their own would be a lookup table of their own, 640 KiB each.
_EXACT_ENDS = {1: (False,), 2: (False,), 3: (False, True), 4: (True,)}


def measured_codebooks(gauge: Gauge, batches: Iterable[Feeds]) -> Codebooks:
    """The codebooks of all saved derivatives, shared by all values of a function.

    Args:
        gauge: of the model.
        batches: to measure on.
    """
    parts: dict[str, list[Weights]] = {}
    for feeds in batches:
        gauge.begin(feeds)
        for key, point in gauge.points.items():
            gradient = gauge.incoming(key)
            if point.saved.kind.startswith("derivative:") and bits_of(point.saved) \
                    and gradient is not None:
                parts.setdefault(key, []).append(Weights.of(
                    gauge.forward(key).numpy(), gradient.numpy(), axis_of_units(
                        point.saved.shape)))
    function_of = {key: gauge.points[key].saved.kind.partition(":")[2] for key in parts}
    single = {key: Weights.mean(parts[key], function_of[key]) for key in parts}
    books: dict[tuple[str, int], Codebook] = {}
    for function in sorted(set(function_of.values())):
        keys = [key for key in single if function_of[key] == function]
        pooled = Weights.mean([single[key] for key in keys], function)
        for width, ends in _EXACT_ENDS.items():
            made = [design(function, 1 << width, pooled, exact_ends=exact) for exact in ends]
            for key in keys:
                errors = [book.error(function, single[key]) for book in made]
                books[key, width] = made[errors.index(min(errors))]
    return books


__all__ = ["measured_codebooks"]
