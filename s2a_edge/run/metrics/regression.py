"""Numbers: errors in the targets' own units, and the share of their variance that is explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2a_edge.run.metrics.evaluation import Array, Evaluation, require_finite
from s2a_edge.run.target_scaling import TargetScaling


@dataclass(frozen=True)
class OutputFigures:
    """Of one regressed number, in its own units.

    Attributes:
        label: its name.
        mae: mean absolute error.
        rmse: root of the mean squared error.
        r2: ``1 - Σ(y - p)² / Σ(y - mean y)²``; None where all targets are equal.
    """

    label: str
    mae: float
    rmse: float
    r2: float | None


@dataclass(frozen=True)
class RegressionResult(Evaluation):
    """Of squared or absolute error; ``loss`` is that of standardised targets, as in training.

    The loss also decides which epoch is best: of one output it orders epochs as RMSE (``mse``) or
    MAE (``l1``) does, of several it weighs them by their deviations.

    Attributes:
        mae: mean over outputs.
        rmse: root of the mean square over outputs.
        r2: mean over the outputs that have one; None if none has.
        per_output: figures in the order of the bundle's outputs.
    """

    mae: float
    rmse: float
    r2: float | None
    per_output: tuple[OutputFigures, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """``mae``, ``rmse``, and ``r2`` where defined."""
        r2 = {} if self.r2 is None else {"r2": self.r2}
        return {"mae": self.mae, "rmse": self.rmse, **r2}


class RegressionTally:
    """Adds up errors in float64.

    Args:
        names: of the outputs.
        scaling: from the graph's units to the targets'.
        absolute: the loss is the absolute error, not the squared one.
        where: for errors, the data set.
    """

    def __init__(
        self, names: Sequence[str], scaling: TargetScaling, *, absolute: bool, where: str
    ) -> None:
        self._names, self._scaling, self._absolute = tuple(names), scaling, absolute
        self._where = where
        self._n = 0
        # Sums by output; targets are taken relative to the first one, which keeps their
        # variance exact where their mean is large.
        self._absolute_sum, self._square_sum, self._y, self._yy = np.zeros((4, len(names)))
        self._origin = np.zeros(len(names))

    def add(self, outputs: Array, targets: Array) -> None:
        """Logits [k, C] of targets [k, C] in their own units."""
        error = self._scaling.undo(outputs) - targets
        require_finite(float(error.sum()), self._where, "predictions")
        if not self._n:
            self._origin = targets[0].astype(np.float64)
        y = targets - self._origin
        self._absolute_sum += np.abs(error).sum(axis=0)
        self._square_sum += np.square(error).sum(axis=0)
        self._y += y.sum(axis=0)
        self._yy += np.square(y).sum(axis=0)
        self._n += len(outputs)

    def loss(self) -> float:
        """Mean over samples and outputs, of standardised targets, so far."""
        std = np.array(self._scaling.std)
        terms = self._absolute_sum / std if self._absolute else self._square_sum / std**2
        return float(terms.mean() / self._n)

    def score(self) -> None:
        """The loss says it all."""

    def result(self) -> RegressionResult:
        """Of all that was added."""
        mae, mse = self._absolute_sum / self._n, self._square_sum / self._n
        spread = self._yy - np.square(self._y) / self._n
        noise = 1e-12 * np.maximum(self._yy, np.finfo(np.float64).tiny)
        rows = tuple(
            OutputFigures(
                label=name,
                mae=float(mae[i]),
                rmse=float(np.sqrt(mse[i])),
                r2=float(1 - self._square_sum[i] / spread[i]) if spread[i] > noise[i] else None,
            )
            for i, name in enumerate(self._names)
        )
        defined = [row.r2 for row in rows if row.r2 is not None]
        return RegressionResult(
            loss=self.loss(),
            n=self._n,
            mae=float(mae.mean()),
            rmse=float(np.sqrt(mse.mean())),
            r2=float(np.mean(defined)) if defined else None,
            per_output=rows,
        )
