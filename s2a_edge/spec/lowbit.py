"""Low-bit formats in numpy: how codes lie in bytes, and how group scales are rounded.

This is the reference that the ONNX codecs are tested against. Codes are unsigned integers of 1, 2
or 4 bits. They are packed as ONNX packs its 4-bit types (ONNX IR, "sub-byte types"): the first
element takes the lowest bits of a byte. Example, 4 bits: ``[1, 2, 3] -> [0x21, 0x03]``.
A little-endian 16-bit word of four 4-bit codes therefore has the same bytes as two packed pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2a_edge.spec.errors import InternalError

PACKED_BITS = (1, 2, 4)

# Group scales are bfloat16: they have float32's range, so no activation is too large or too small
# for them, and their coarse mantissa does no harm because encoding divides by the rounded scale.
SCALE_BYTES = 2
FLOAT16_MAX = 65504.0


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take; the last byte may be partly empty."""
    return (count * bits + 7) // 8


def pack_codes(codes: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Packs codes, first element in the lowest bits.

    Args:
        codes: integers in [0, 2**bits), any shape; taken in C order.
        bits: 1, 2 or 4.

    Returns:
        uint8 [packed_bytes(codes.size, bits)]; unused high bits are zero.

    Raises:
        InternalError: if ``bits`` is another number or a code does not fit.
    """
    _check_bits(bits)
    flat = codes.reshape(-1)
    if flat.size and (flat.min() < 0 or flat.max() >= 1 << bits):
        raise InternalError(where="pack_codes", expected=f"codes in [0, {1 << bits})",
                            got=f"[{flat.min()}, {flat.max()}]", todo="report this")
    per_byte = 8 // bits
    padded = np.zeros(packed_bytes(flat.size, bits) * per_byte, np.uint8)
    padded[: flat.size] = flat
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    shifted = padded.reshape(-1, per_byte) << shifts
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=1)
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of :func:`pack_codes`: uint8 [count].

    Raises:
        InternalError: if ``bits`` is not 1, 2 or 4, or ``packed`` is not of the right size.
    """
    _check_bits(bits)
    if packed.size != packed_bytes(count, bits):
        raise InternalError(where="unpack_codes", expected=f"{packed_bytes(count, bits)} bytes",
                            got=str(packed.size), todo="report this")
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    codes = (packed.reshape(-1, 1) >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(-1)[:count]


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite float32 values rounded to the nearest bfloat16 (ties to even), as float32."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    tie_to_even = np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))
    return ((raw + tie_to_even) & np.uint32(0xFFFF0000)).view(np.float32)


def bfloat16_below(value: float) -> float:
    """The largest bfloat16 that is not larger than ``value``, a positive normal float32."""
    raw = np.array(value, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return float(raw.view(np.float32))


def _check_bits(bits: int) -> None:
    if bits not in PACKED_BITS:
        raise InternalError(where="lowbit", expected=f"bits in {PACKED_BITS}", got=str(bits),
                            todo="report this")


__all__ = ["FLOAT16_MAX", "PACKED_BITS", "SCALE_BYTES", "bfloat16_below", "pack_codes",
           "packed_bytes", "round_to_bfloat16", "unpack_codes"]
