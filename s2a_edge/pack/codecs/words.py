"""Codes to packed words and back, in operators that every execution provider has.

CUDA has neither BitShift nor Bitwise*, and ONNX Runtime's 4-bit DequantizeLinear is slow on CPU.
So a word is a small dot product, ``[codes] . [1, 2**b, 2**2b, ...]`` (exact in float32, and in
TF32: each factor has few significant bits), and unpacking is a lookup of the whole word in a
table with one row per word: one Gather both unpacks and dequantizes, with any codebook.
A longer word halves the number of lookups: four 4-bit codes make a uint16 (table of 1 MiB).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.native_ops import CODES_PER_WORD, native

# Rows of a table longer than these would outgrow a small core's cache (2 bits: 2 MiB).
_LONG_WORD_BITS = (4, 8)
# Codes of these widths do not fill a byte; five or three of them nearly fill 16 bits.
_ODD_BITS = (3, 5)


def word_bits(count: int, bits: int) -> int:
    """Bits of the words for ``count`` codes.

    16 for codes of 3 and 5 bits, of which one bit stays empty, and for codes of 4 and 8 bits if
    that divides; else 8.
    """
    if bits in _ODD_BITS:
        return 16
    return 16 if bits in _LONG_WORD_BITS and count * bits % 16 == 0 else 8


def words_bytes(count: int, bits: int) -> int:
    """Bytes that :func:`pack_words` stores for ``count`` codes."""
    per_word = word_bits(count, bits) // bits
    return -(-count // per_word) * word_bits(count, bits) // 8


def flatten(g: GraphBuilder, x: ir.Value, multiple: int = 1) -> ir.Value:
    """``x`` as one axis, with zeros appended until ``multiple`` divides its size.

    The Reshape is free; the Pad copies, and is only made where it is needed.
    """
    flat = g.op("Reshape", x, g.constant([-1]))
    missing = -count_of(shape_of(x)) % multiple
    return g.op("Pad", flat, g.constant([0, missing])) if missing else flat


def unflatten(g: GraphBuilder, flat: ir.Value, shape: Shape) -> ir.Value:
    """Drops what :func:`flatten` has appended and restores ``shape``."""
    flat = g.op("Reshape", flat, g.constant([-1]))
    count = count_of(shape)
    if shape_of(flat)[0] != count:
        flat = g.op("Slice", flat, g.constant([0]), g.constant([count]))
    return g.op("Reshape", flat, g.constant(np.array(shape, np.int64)))


def _round_to_codes(g: GraphBuilder, x: ir.Value, step: float, offset: int, top: int) -> ir.Value:
    """float32 ``round(x / step) + offset``, ties to even, at most ``top``, as an integer code.

    A quantize-dequantize pair: on CPU it takes the time of Round alone, and scales, shifts and
    saturates on the way.
    """
    if g.in_half:
        return _round_in_half(g, x, step, offset, top)
    zero_point = 255 - top + offset
    codes = g.op("QuantizeLinear", x, g.constant(float(step)),
                 g.constant(np.array(zero_point, np.uint8)))
    with g.float32():
        return g.op("DequantizeLinear", codes, g.constant(1.0),
                    g.constant(np.array(255 - top, np.uint8)))


def _round_in_half(g: GraphBuilder, x: ir.Value, step: float, offset: int, top: int) -> ir.Value:
    """The same without QuantizeLinear, which would take x in float32: up to 255 it is exact."""
    units = x if step == 1.0 else g.op("Mul", x, g.constant(1.0 / step))
    codes = g.op("Round", units)
    if offset:
        codes = g.op("Add", codes, g.constant(float(offset)))
    return g.op("Clip", codes, g.constant(0.0), g.constant(float(top)))


def pack_rounded(g: GraphBuilder, x: ir.Value, step: float, offset: int, bits: int) -> ir.Value:
    """``round(x / step) + offset``, at most 2**bits - 1, packed as :func:`pack_words` does.

    The caller sees to it that x is not below ``-offset * step``.
    """
    count = count_of(shape_of(x))
    if g.native and bits == 4 and count % CODES_PER_WORD == 0:
        return native(g, "PackWords", x, shape=(count // CODES_PER_WORD,), step=float(step),
                      offset=offset)
    return pack_words(g, _round_to_codes(g, x, step, offset, (1 << bits) - 1), bits)


def pack_words(g: GraphBuilder, codes: ir.Value, bits: int) -> ir.Value:
    """Packs float32 integers in [0, 2**bits), any shape, into uint8 or uint16 [words]."""
    count = count_of(shape_of(codes))
    width = word_bits(count, bits)
    in_half = g.in_half and bits not in _ODD_BITS
    if in_half:
        width = 8  # a word is exact in float16's 11 bits
    per_word = width // bits
    weights = (2.0 ** (bits * np.arange(per_word))).astype(np.float32).reshape(-1, 1)
    with g.float32(not in_half):
        rows = g.op("Reshape", flatten(g, codes, per_word), g.constant([-1, per_word]))
        words = g.op("MatMul", rows, g.constant(weights))
    words = g.op("Cast", words, to=int(ir.DataType.UINT16 if width == 16 else ir.DataType.UINT8))
    return g.op("Reshape", words, g.constant([-1]))


def lookup_words(g: GraphBuilder, words: ir.Value, levels: Array, shape: Shape) -> ir.Value:
    """The level of every code in ``words``, float32 of ``shape``; ``levels`` is [2**bits]."""
    bits = (levels.size - 1).bit_length()
    width = dtype_of(words).bitwidth
    if g.native and bits == 4 and width == 16 and count_of(shape) % CODES_PER_WORD == 0:
        return native(g, "UnpackWords", words, shape=shape, levels=[float(x) for x in levels])
    table = levels[word_codes(width, bits)].astype(np.float32)
    index = g.op("Cast", words, to=int(ir.DataType.INT32))
    return unflatten(g, g.op("Gather", g.constant(table), index), shape)


def word_codes(width: int, bits: int) -> NDArray[np.uint16]:
    """uint16 [words, width // bits]: the codes in every word that occurs, lowest bits first."""
    per_word = width // bits
    words = np.arange(1 << bits * per_word, dtype=np.uint32).reshape(-1, 1)
    shifts = bits * np.arange(per_word, dtype=np.uint32)
    return ((words >> shifts) & np.uint32((1 << bits) - 1)).astype(np.uint16)


__all__ = ["flatten", "lookup_words", "pack_rounded", "pack_words", "unflatten", "word_bits",
           "word_codes", "words_bytes"]
