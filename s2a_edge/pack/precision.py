"""How many bits each saved value gets: the fixed policy.

``bits`` is what every large saved value gets. Two exceptions, both measured (ARCHITECTURE.md):

* Masks and window indices are exact in 1 to 4 bits at any setting below 32.
* Attention. Either the probabilities P are coded and q, k, v with them, or P is recomputed from
  q, k at 8 bits. With N tokens and heads of width d, the first takes N/2 + 3d/2 bytes per token
  and head, the second 3d. Recomputation has the smaller gradient error at equal bytes (and took
  less time), so ``auto`` recomputes where it does not take more: N >= 3d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from s2a_edge.pack.codecs import Codec, codec_for
from s2a_edge.pack.codecs.activations import DERIVATIVES
from s2a_edge.pack.exact import ExactCodec, HalfDerivative

Attention = Literal["auto", "store", "recompute"]
BITS = (2, 3, 4, 8, 16, 32)


class Policy(Protocol):
    """Decides how each saved value is kept."""

    def codec(self, kind: str, shape: tuple[int, ...], *, recomputes: bool = False, key: str = "",
              ) -> Codec:
        """The codec of a saved value of ``kind`` and ``shape``.

        Args:
            kind: see ``rule.Forward.save``.
            shape: static shape of the value.
            recomputes: whether attention probabilities are recomputed from it.
            key: of the value (``saving.SavedValue``).
        """
        ...

    def recompute_probabilities(self, tokens: int, width: int, *, key: str = "") -> bool:
        """Whether P [.., tokens, tokens] of heads of ``width`` is recomputed in the backward.

        Args:
            tokens: length of a row of P.
            width: of a head.
            key: of P.
        """
        ...


@dataclass(frozen=True)
class Precision:
    """The fixed policy: one number of bits, and what happens to attention probabilities."""

    bits: int = 4
    attention: Attention = "auto"

    def codec(self, kind: str, shape: tuple[int, ...], *, recomputes: bool = False, key: str = "",
              ) -> Codec:
        """See :meth:`Policy.codec`; values of a kind are treated alike, whatever their key."""
        if kind == "exact" or (kind == "activation" and is_statistic(shape)):
            # Thousandths of the bytes, full accuracy.
            return ExactCodec("activation")
        if self.bits == 32 or (kind.startswith(("derivative", "normalized"))
                               and is_statistic(shape)):
            return ExactCodec(kind)
        bits = max(self.bits, 8) if recomputes else self.bits
        family, _, detail = kind.partition(":")
        if family == "index":
            return codec_for("index", max(1, (int(detail) - 1).bit_length()), shape)
        if family == "derivative" and (bits == 16 or detail not in DERIVATIVES):
            # Without a codebook for the function, its argument in half precision.
            return HalfDerivative(kind)
        return codec_for(kind, bits, shape)

    def recompute_probabilities(self, tokens: int, width: int, *, key: str = "") -> bool:
        """See :meth:`Policy.recompute_probabilities`."""
        if self.attention != "auto":
            return self.attention == "recompute"
        if self.bits >= 16:
            return False
        if self.bits == 8:
            return True
        return tokens >= 3 * width


def is_statistic(shape: tuple[int, ...]) -> bool:
    """Whether a value of ``shape`` is a statistic of others, with one axis besides the batch.

    [N, C], [N, C, 1, 1] (pooled features, gates of channels), [N, T, 1] (one number per token).
    """
    return len(shape) <= 2 or sum(extent > 1 for extent in shape[1:]) <= 1
