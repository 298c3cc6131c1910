"""Which codec keeps which kind of value at how many bits."""

from __future__ import annotations

from s2a_edge.pack.codecs.activations import DERIVATIVES
from s2a_edge.pack.codecs.codec import Codec, Shape
from s2a_edge.pack.codecs.derivative import DerivativeCodec
from s2a_edge.pack.codecs.group import SymmetricGroupCodec
from s2a_edge.pack.codecs.index import IndexCodec
from s2a_edge.pack.codecs.mask import MaskCodec
from s2a_edge.pack.codecs.plain import HalfCodec, KeepCodec
from s2a_edge.pack.codecs.probability import ProbabilityCodec
from s2a_edge.pack.codecs.row import RowCodec
from s2a_edge.spec.errors import InternalError

_MASKS = {
    "relu": MaskCodec(),
    "relu6": MaskCodec(high=6.0, name="mask1_relu6"),
    "hardsigmoid": MaskCodec(low=-3.0, high=3.0, inside=1.0 / 6.0, name="mask1_hardsigmoid"),
}


def codec_for(kind: str, bits: int, shape: Shape) -> Codec:
    """The codec for a saved value.

    Args:
        kind: ``derivative:<fn>``, ``mask``, ``mask:relu6``, ``normalized``, ``probability``,
            ``activation`` or ``index``.
        bits: 1, 2, 4, 8, 16 or 32; masks are always 1 bit, whatever is asked for.
        shape: of the value.

    Raises:
        InternalError: if there is no such codec.
    """
    base, _, detail = kind.partition(":")
    if base == "mask":
        return _MASKS[detail or "relu"]
    if base == "derivative" and detail in _MASKS:
        return _MASKS[detail]
    if base == "derivative" and detail in DERIVATIVES and bits in (1, 2, 4, 8):
        return DerivativeCodec(detail, bits)
    if base == "index" and bits <= 8:
        return IndexCodec(next(width for width in (1, 2, 4, 8) if width >= bits))
    if base in ("normalized", "activation", "probability", "index"):
        if bits == 32:
            return KeepCodec()
        if bits == 16:
            return HalfCodec()
        if base == "probability" and bits in (2, 4, 8):
            return ProbabilityCodec(bits)
        if bits == 8:
            return RowCodec()
        if bits in (2, 4):
            return SymmetricGroupCodec(bits)
    raise InternalError(where=f"codec for {kind}", expected="a kind and bits with a codec",
                        got=f"{bits} bits", todo="report this")


__all__ = ["codec_for"]
