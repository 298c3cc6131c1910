"""The ways in which one saved value can be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from s2a_edge.pack.codecs import Codec, codec_for
from s2a_edge.pack.codecs.codebook import Codebook
from s2a_edge.pack.codecs.codec import Shape
from s2a_edge.pack.codecs.gradient_weights import REFERENCES
from s2a_edge.pack.codecs.group import SymmetricCodec
from s2a_edge.pack.exact import ExactCodec, HalfDerivative
from s2a_edge.pack.precision import is_statistic
from s2a_edge.pack.saving import SavedValue

RECOMPUTE = 0
"""Stands for the number of bits of a value that is computed again."""

# One bit is for derivatives alone: of a value with a scale it leaves three fifths as error.
_BITS = {
    "derivative": (1, 2, 3, 4, 8, 16, 32),
    "normalized": (2, 3, 4, 8, 16, 32),
    "activation": (2, 3, 4, 8, 16, 32),
    "probability": (2, 3, 4, 8, 16, 32),
}

Codebooks = Mapping[tuple[str, int], Codebook]
"""By key of a saved derivative and bits: the codebook that it gets."""


@dataclass(frozen=True)
class Codecs:
    """Which codec keeps what in how many bits.

    Attributes:
        books: of the derivatives; those of the reference where there is none.
    """

    books: Codebooks

    def codec(self, key: str, kind: str, bits: int, shape: Shape) -> Codec:
        """The codec for the value ``key`` of ``kind`` at ``bits``, one of :func:`bits_of`."""
        family = kind.partition(":")[0]
        if bits == 32:
            return ExactCodec(kind)
        if family == "derivative" and bits == 16:
            return HalfDerivative(kind)
        if family in ("normalized", "activation") and bits == 8:
            # A scale for each channel: one for a row is spoilt by the outliers among its channels.
            return SymmetricCodec(8)
        return codec_for(kind, bits, shape, self.books.get((key, bits)))


def bits_of(saved: SavedValue) -> tuple[int, ...]:
    """The numbers of bits that ``saved`` can be kept in, recomputation apart.

    None where there is nothing to choose: masks and indices are exact in as few bits as can be,
    and statistics of samples and tokens are too small to matter.
    """
    family, _, function = saved.kind.partition(":")
    if is_statistic(saved.shape):
        return ()
    if family == "derivative" and function not in REFERENCES:
        return ()
    return _BITS.get(family, ())


def ties_of(saved: Iterable[SavedValue]) -> list[tuple[str, ...]]:
    """Keys of values that get the same bits: slices of one hidden layer, elsewhere single ones."""
    groups: dict[tuple[str, str], list[str]] = {}
    for value in saved:
        sliced = value.kind.startswith("derivative:")
        groups.setdefault((value.module, value.kind) if sliced else (value.key, ""), []).append(
            value.key)
    return [tuple(keys) for keys in groups.values()]


def axis_of_units(shape: Shape) -> int:
    """The axis of channels: the second of square images, elsewhere the last."""
    return 1 if len(shape) == 4 and shape[2] == shape[3] else -1


__all__ = ["RECOMPUTE", "Codebooks", "Codecs", "axis_of_units", "bits_of", "ties_of"]
