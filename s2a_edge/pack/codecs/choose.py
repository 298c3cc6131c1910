"""Which codec keeps which kind of value at how many bits."""

from __future__ import annotations

from s2a_edge.pack.codecs.codebook import Codebook
from s2a_edge.pack.codecs.codec import Codec, Shape
from s2a_edge.pack.codecs.derivative import REFERENCES, WIDTHS, DerivativeCodec
from s2a_edge.pack.codecs.group import AsymmetricCodec, SymmetricCodec
from s2a_edge.pack.codecs.index import IndexCodec
from s2a_edge.pack.codecs.mask import MaskCodec, mask_bounds
from s2a_edge.pack.codecs.plain import HalfCodec, KeepCodec
from s2a_edge.pack.codecs.probability import ProbabilityCodec
from s2a_edge.pack.codecs.row import RowCodec
from s2a_edge.spec.errors import InternalError

MASKS = {
    "relu": MaskCodec(),
    "relu6": MaskCodec(high=6.0, name="mask1_relu6"),
    "hardsigmoid": MaskCodec(low=-3.0, high=3.0, inside=1.0 / 6.0, name="mask1_hardsigmoid"),
}


SCALED = (AsymmetricCodec, RowCodec, SymmetricCodec)
"""Codecs that divide by scales, which float16 may not hold: they compute in float32."""


def codec_for(kind: str, bits: int, shape: Shape, book: Codebook | None = None) -> Codec:
    """The codec for a saved value.

    Args:
        kind: ``derivative:<fn>`` (fn as in ``activations.DERIVATIVES``; ``encode`` takes the
            pre-activation), ``mask``, ``mask:relu6``, ``mask:LOW:HIGH``, ``normalized``,
            ``probability``, ``activation`` or ``index``.
        bits: 2, 3, 4, 8; for derivatives also 1, for all others 16 and 32. Masks always take
            1 bit, indices the least of 1, 2, 4 and 8 that is enough.
        shape: of the value.
        book: a codebook of the model at hand, of a derivative at so many bits.

    Raises:
        InternalError: if there is no such codec.
    """
    family, _, detail = kind.partition(":")
    codec: Codec | None = None
    if family == "mask":
        codec = MASKS.get(detail or "relu") or _bounded_mask(detail)
    elif family == "derivative":
        codec = _derivative(detail, bits, book)
    elif family == "index":
        codec = next((IndexCodec(width) for width in (1, 2, 4, 8) if width >= bits), None)
    elif family in ("normalized", "probability", "activation"):
        codec = _value(family, bits)
    if codec is None:
        raise InternalError(where=f"codec for {kind} {list(shape)}",
                            expected="a kind and bits with a codec", got=f"{bits} bits",
                            todo="report this")
    return codec


def _bounded_mask(detail: str) -> Codec | None:
    """1 between the numbers of ``LOW:HIGH``; None if it is something else."""
    try:
        low, high = mask_bounds(detail)
    except ValueError:
        return None
    return MaskCodec(low, high, name="mask1_bounded")


def _derivative(function: str, bits: int, book: Codebook | None) -> Codec | None:
    if function in MASKS:
        return MASKS[function]
    if function not in REFERENCES or bits not in WIDTHS:
        return None
    return DerivativeCodec(function, bits, book)


def _value(family: str, bits: int) -> Codec | None:
    if bits == 32:
        return KeepCodec()
    if bits == 16:
        return HalfCodec()
    if family == "probability":
        return ProbabilityCodec(bits) if bits in (2, 3, 4, 8) else None
    if bits == 8:
        return RowCodec()
    if bits == 4 and family == "normalized":
        return SymmetricCodec()
    return AsymmetricCodec(bits) if bits in (2, 3, 4) else None


__all__ = ["MASKS", "SCALED", "codec_for"]
