"""Coding a frozen weight, with scales per group of rows of one column.

Numbers are rounded to nearest, those of 4-bit matrices with error feedback (``error_feedback``).

:mod:`s2a_edge.spec.frozen_weights` defines the codes and decodes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from s2a_edge.pack.frozen.error_feedback import error_feedback_codes
from s2a_edge.pack.frozen.second_moments import Moment
from s2a_edge.spec.frozen_weights import ZERO_POINT, Codec, FrozenStorage

# Rows that share a scale, at most. Relative error of the weights of ViT-S/14, 4 bits: 7.5 % with
# 16, 8.9 % with 32, 10.1 % with 64 rows; 8 bits with 128 rows: 0.8 %.
_MOST_ROWS = {"int8": 128, "int4": 32}
_FEWEST_ROWS = 8
# Shares of a group's largest value at which its range is cut: what is cut off costs less than finer
# steps gain. Searched per group for the least squared error; without it int4 has 10.3 % for 8.9.
_CUTS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
_LARGEST_INT8 = 127
_LARGEST_CODE = 15
_LARGEST_SCALE = 255
# Outside of this, float16 or a scale would lose more than rounding does.
_SMALLEST, _LARGEST = 2.0**-9, 60000.0
_FLOAT: FrozenStorage = "fp32"


@dataclass(frozen=True)
class Coded:
    """A coded tensor; the fields are those of ``spec.frozen_weights.CodedWeight``."""

    codec: Codec
    shape: tuple[int, ...]
    codes: NDArray[np.generic]
    scales: NDArray[np.generic] | None = None
    block: int = 1
    step: float | None = None


def encode(values: NDArray[np.float32], storage: FrozenStorage, *, half_scales: bool = False,
           moment: Moment | None = None) -> Coded | None:
    """Codes a weight, in more bits than asked for where its rows cannot be grouped.

    Args:
        values: [N, *rest], N rows.
        storage: what is asked for.
        half_scales: scales of 8-bit codes in float16, so that they decode to it.
        moment: of what products with a matrix of 4 bits read: it is rounded so that they change
            little, instead of each number to the nearest.

    Returns:
        None where float32 is kept: values that are not finite, or all too small or too large.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if storage == _FLOAT or not _SMALLEST <= largest <= _LARGEST:  # NaN compares false
        return None
    if storage == "int4" and values.shape[0] % 2 == 0 and (block := _block(
            values.shape[0] // 2, "int4")):
        coded = _int4(values, block)
        return coded if moment is None else _with_feedback(values, coded, moment)
    if storage in ("int8", "int4") and (block := _block(values.shape[0], "int8")):
        return _int8(values, block, half_scales=half_scales)
    return Coded("float16", values.shape, values.astype(np.float16))


def _block(rows: int, codec: str) -> int | None:
    """The most rows that may share a scale and divide ``rows``."""
    fitting = [n for n in range(_FEWEST_ROWS, _MOST_ROWS[codec] + 1) if rows % n == 0]
    return max(fitting, default=None)


def _int8(values: NDArray[np.float32], block: int, *, half_scales: bool) -> Coded:
    groups = values.reshape(-1, block, *values.shape[1:])
    scales: NDArray[np.floating] = np.abs(groups).max(axis=1).astype(np.float32) / np.float32(
        _LARGEST_INT8)
    if half_scales:
        scales = _float16_above(scales)  # the codes are of the scale as it is stored
    factors = scales.astype(np.float32)
    codes = np.rint(groups / np.where(factors > 0, factors, 1)[:, None])
    codes = codes.clip(-_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
    return Coded("int8", values.shape, codes.reshape(values.shape), scales, block)


def _float16_above(values: NDArray[np.floating]) -> NDArray[np.float16]:
    """The smallest float16 that is not smaller; a subnormal one is as good: its codes fit it."""
    nearest = values.astype(np.float16)
    above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float32) < values, above, nearest)


def _int4(values: NDArray[np.float32], block: int) -> Coded:
    halves = values.reshape(2, -1, block, *values.shape[1:])
    largest = np.abs(halves).max(axis=2) / np.float32(_LARGEST_CODE / 2)
    step = np.float32(largest.max() / _LARGEST_SCALE)
    least = np.full(largest.shape, np.inf, np.float32)
    scales = np.zeros(largest.shape, np.uint8)
    codes = np.full(halves.shape, ZERO_POINT, np.uint8)
    for cut in _CUTS:
        tried = np.rint(largest * np.float32(cut) / step).clip(0, _LARGEST_SCALE)
        scale = (tried.astype(np.float32) * step)[:, :, None]
        found = np.rint(halves / np.where(scale > 0, scale, 1)) + ZERO_POINT
        found = found.clip(0, _LARGEST_CODE)
        error = np.square((found - ZERO_POINT) * scale - halves).sum(axis=2)
        better = error < least
        least = np.where(better, error, least)
        scales = np.where(better, tried.astype(np.uint8), scales)
        codes = np.where(better[:, :, None], found.astype(np.uint8), codes)
    return Coded("int4", values.shape, _packed(codes, values.shape), scales, block, float(step))


def _packed(codes: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    halves = codes.reshape(2, shape[0] // 2, *shape[1:])
    return halves[:1] | halves[1:] << np.uint8(4)


def _with_feedback(values: NDArray[np.float32], nearest: Coded, moment: Moment) -> Coded:
    """The codes that make up for one another's errors; with the step of the nearest ones."""
    assert nearest.step is not None and nearest.scales is not None
    found = error_feedback_codes(values, nearest.block, moment.axis, moment.values,
                                 np.float32(nearest.step), _CUTS)
    if found is None:
        return nearest
    codes, scales = found
    return replace(nearest, codes=_packed(codes, values.shape),
                   scales=scales.reshape(nearest.scales.shape))


__all__ = ["Coded", "encode"]
