"""Forms of targets, one for each kind of task, and soft labels.

=================  =====================================================================
loss               targets of a data set, N rows
=================  =====================================================================
``cross_entropy``  int64 [N]: class index, 0..C-1
``bce``            uint8 [N, C], 0 or 1; or float32 [N, C], 0 to 1
``mse``, ``l1``    float32 [N, C]: numbers in their own units
``output``         float32 [N, 0]: what the graph's own loss compares with is an input of it
=================  =====================================================================
"""

from __future__ import annotations

import numpy as np

from s2a_edge.run.data.dtypes import F32, I64, Targets
from s2a_edge.spec.errors import UsageError


def soft_targets(
    labels: I64, classes: int, smoothing: float = 0.0, class_weights: F32 | None = None
) -> F32:
    """One-hot rows, smoothed: ``(1 - s) * onehot + s / C``; then times the classes' weights.

    Szegedy et al., Rethinking the Inception Architecture, 2015, section 7. Without class weights
    rows add up to 1; with them row i is ``(1 - s) w_y onehot + s / C w``, which is what
    ``torch.nn.CrossEntropyLoss(weight=w, label_smoothing=s)`` sums.

    Args:
        labels: int64 [n], 0..C-1.
        classes: C.
        smoothing: s, 0..1; 0 leaves one-hot rows.
        class_weights: w, float32 [C].

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
    if class_weights is not None:
        rows *= class_weights
    return rows


def no_targets(samples: int) -> Targets:
    """The targets of samples that have none: float32 [samples, 0]."""
    return np.zeros((samples, 0), np.float32)
