"""Class indices to the soft-label rows that the training graphs take."""

from __future__ import annotations

import numpy as np

from s2a_edge.run.data.dtypes import F32, I64
from s2a_edge.spec.errors import UsageError


def soft_targets(labels: I64, classes: int, smoothing: float = 0.0) -> F32:
    """One-hot rows, smoothed: ``(1 - s) * onehot + s / C``.

    Szegedy et al., Rethinking the Inception Architecture, 2015, section 7. Rows add up to 1.

    Args:
        labels: int64 [n], 0..C-1.
        classes: C.
        smoothing: s, 0..1; 0 leaves one-hot rows.

    Returns:
        float32 [n, C].

    Raises:
        UsageError: ``smoothing`` is outside 0..1.
    """
    if not 0.0 <= smoothing <= 1.0:
        raise UsageError(
            where="label smoothing",
            expected="a share from 0 to 1",
            got=str(smoothing),
            todo="use 0.1, or 0 to turn it off",
        )
    rows = np.full((len(labels), classes), smoothing / classes, dtype=np.float32)
    rows[np.arange(len(labels)), labels] += np.float32(1.0 - smoothing)
    return rows
