"""Rounding to 4 bits one input after the other, later inputs making up for earlier errors.

GPTQ (arXiv 2210.17323): with H the second moments of the inputs and U the upper Cholesky factor of
H⁻¹, rounding row i of W [K, M] with error e = (w_i - q_i) / U_ii is made up for best, over the
data, by taking U_ij e from every later row j. Scales are those of the rows as they are by then.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from s2a_edge.spec.frozen_weights import ZERO_POINT

_LARGEST_CODE = 15
_LARGEST_SCALE = 255
# Share of the mean that is added to the diagonal of H; as in the paper.
_DAMPING = 0.01
_LAZY_ROWS = 128  # rows behind are updated once for so many

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


def error_feedback_codes(values: Floats, block: int, axis: int, moments: Floats, step: np.float32,
                         cuts: tuple[float, ...]) -> tuple[Codes, Codes] | None:
    """Codes and scales of a matrix, such that products with it change little.

    Args:
        values: [N, C]; ``block`` consecutive rows of a column share a scale.
        block: divides N.
        axis: along which products sum: 0 or 1.
        moments: of the inputs, [K, K], K the size along ``axis``.
        step: a scale is this times its code.
        cuts: shares of a group's range that are tried.

    Returns:
        Codes [N, C] in 0..15 and codes of scales [N / block, C]; None where the moments have no
        inverse.
    """
    factor = _factor(moments)
    if factor is None:
        return None
    count, columns = values.shape
    scales = np.zeros((count // block, columns), np.uint8)
    codes = np.zeros(values.shape, np.uint8)

    def along_rows(row: int, rows: Floats) -> Floats:
        """Rows are inputs: a group is scaled as it stands when its first row comes."""
        if row % block == 0:
            scales[row // block] = _scales(rows[None, :block], step, cuts)[0]
        scale = scales[row // block].astype(np.float32) * step
        codes[row] = found = _nearest(rows[0], scale)
        return _value(found, scale)

    def along_columns(column: int, rows: Floats) -> Floats:
        """Columns are inputs: all groups of one are scaled at once."""
        groups = rows[0].reshape(-1, block, 1)
        scales[:, column] = _scales(groups, step, cuts)[:, 0]
        scale = np.repeat(scales[:, column].astype(np.float32) * step, block)
        codes[:, column] = found = _nearest(rows[0], scale)
        return _value(found, scale)

    if axis == 0:
        _round_rows(values.copy(), factor, along_rows, max(1, _LAZY_ROWS // block) * block)
    else:
        _round_rows(values.T.copy(), factor, along_columns, _LAZY_ROWS)
    return codes, scales


def _factor(moments: Floats) -> Floats | None:
    """The upper Cholesky factor of the inverse; inputs that are always zero count a little."""
    damped = moments.astype(np.float64)
    mean = float(np.mean(np.diag(damped)))
    if not mean > 0:
        return None
    damped[np.diag_indices_from(damped)] += _DAMPING * mean
    try:
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError:
        return None
    return factor.astype(np.float32) if np.isfinite(factor).all() else None


def _round_rows(rows: Floats, factor: Floats, rounded: Callable[[int, Floats], Floats],
                lazy: int) -> None:
    """Rounds each of ``rows`` [K, M] (which are changed) and passes its error on.

    ``rounded(i, rows)`` gives row i rounded, from the rows i and later of its run.
    """
    for first in range(0, len(rows), lazy):
        end = min(first + lazy, len(rows))
        errors = np.empty((end - first, rows.shape[1]), np.float32)
        for i in range(first, end):
            errors[i - first] = (rows[i] - rounded(i, rows[i:end])) / factor[i, i]
            rows[i + 1 : end] -= factor[i, i + 1 : end, None] * errors[i - first]
        rows[end:] -= factor[first:end, end:].T @ errors


def _scales(groups: Floats, step: np.float32, cuts: tuple[float, ...]) -> Codes:
    """Codes [G, C] of the scales of least squared error of groups [G, block, C]."""
    largest = np.abs(groups).max(axis=1) / np.float32(_LARGEST_CODE / 2)
    least = np.full(largest.shape, np.inf, np.float32)
    best = np.zeros(largest.shape, np.uint8)
    for cut in cuts:
        tried = np.rint(largest * np.float32(cut) / step).clip(0, _LARGEST_SCALE)
        scale = (tried.astype(np.float32) * step)[:, None]
        made = _value(_nearest(groups, scale), scale)
        error = np.square(made - groups).sum(axis=1)
        best = np.where(error < least, tried.astype(np.uint8), best)
        least = np.minimum(error, least)
    return best


def _value(codes: Codes, scale: Floats) -> Floats:
    signed: Floats = codes.astype(np.float32) - np.float32(ZERO_POINT)
    return signed * scale


def _nearest(values: Floats, scale: Floats) -> Codes:
    found = np.rint(values / np.where(scale > 0, scale, np.float32(1))) + ZERO_POINT
    return found.clip(0, _LARGEST_CODE).astype(np.uint8)


__all__ = ["error_feedback_codes"]
