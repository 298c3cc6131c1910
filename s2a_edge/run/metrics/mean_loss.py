"""A loss that the graph computes itself: its mean is all there is to know."""

from __future__ import annotations

from dataclasses import dataclass

from s2a_edge.run.metrics.evaluation import Array, Evaluation, require_finite


@dataclass(frozen=True)
class LossResult(Evaluation):
    """Of a graph's own loss.

    Attributes:
        left_out: samples at the end that do not fill a batch; such a loss takes full ones only.
    """

    left_out: int


class LossTally:
    """Averages the loss over batches.

    Args:
        samples: of the data set, those that will be left out included.
        where: for errors, the data set.
    """

    def __init__(self, samples: int, where: str) -> None:
        self._samples, self._where = samples, where
        self._n, self._sum = 0, 0.0

    def add(self, outputs: Array, targets: Array) -> None:
        """The loss [] of ``len(targets)`` samples."""
        self._sum += require_finite(float(outputs), self._where, "loss") * len(targets)
        self._n += len(targets)

    def loss(self) -> float:
        """Mean so far."""
        return self._sum / self._n

    def score(self) -> None:
        """The loss says it all."""

    def result(self) -> LossResult:
        """Of all that was added."""
        return LossResult(loss=self.loss(), n=self._n, left_out=self._samples - self._n)
