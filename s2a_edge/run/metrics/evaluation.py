"""What an evaluation gives, whatever the task: a loss, figures by name, and one that decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from s2a_edge.spec.errors import NonFiniteLossError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Score:
    """The figure by which two evaluations of one task are compared."""

    name: str
    value: float
    higher_is_better: bool


@dataclass(frozen=True)
class Evaluation:
    """Result over ``n`` samples; each task has a subclass with its figures.

    Attributes:
        loss: mean loss, without label smoothing or class weights.
        n: how many samples.
    """

    loss: float
    n: int

    @property
    def metrics(self) -> dict[str, float]:
        """Figures by name, those that are defined for the data at hand."""
        return {}

    @property
    def score(self) -> Score:
        """What decides which epoch is best: the loss, unless the task knows better."""
        return Score("loss", self.loss, higher_is_better=False)


class Tally(Protocol):
    """Adds up an evaluation batch by batch, in the data set's order."""

    def add(self, outputs: Array, targets: Array) -> None:
        """Count one batch.

        Args:
            outputs: what the evaluation graph gave, of the samples alone.
            targets: of these samples.

        Raises:
            NonFiniteLossError: an output is NaN or infinite.
        """

    def loss(self) -> float:
        """Mean loss of what was added so far."""

    def score(self) -> Score | None:
        """The deciding figure so far; None where it takes all samples."""

    def result(self) -> Evaluation:
        """The evaluation of what was added."""


def require_finite(value: float, where: str, what: str = "logits") -> float:
    """``value``; raises NonFiniteLossError if it is NaN or infinite."""
    if not np.isfinite(value):
        raise NonFiniteLossError(
            where=f"evaluation on {where}",
            expected=f"finite {what}",
            got="NaN or infinity",
            todo="evaluate an earlier checkpoint, or train with a lower learning rate",
        )
    return value
