"""The update: the gradients' global norm, then one small graph, chunk by chunk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from s2a_edge.run.device_tensor import Array
from s2a_edge.run.engine import Engine
from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.state import TrainingState
from s2a_edge.run.undivided import undivided

_FLOAT32 = np.finfo(np.float32)


class OptimizerStep:
    """The optimizer graph, run over one chunk of the state's buffers after the other.

    Args:
        engine: runs it.
        path: of the graph.
        kind: ``"adamw"`` or ``"sgd"``.
        state: updated in place.

    Raises:
        BundleError: the graph is not of this state.
    """

    def __init__(self, engine: Engine, path: Path, kind: str, state: TrainingState) -> None:
        self._kind, self._state = kind, state
        scalars = Hyperparameters().scalars(kind, lr=0.0, step=0)
        self._scalars = {name: engine.tensor(()) for name in scalars}
        self._graph = engine.load(path)
        self._bind(0)

    def run(self, lr: float, step: int, settings: Hyperparameters) -> float:
        """Update parameters and states; the gradients stay as they are.

        Args:
            lr: learning rate.
            step: optimizer steps done before this one.
            settings: everything else.

        Returns:
            Global gradient norm before clipping. If it is not finite, nothing was changed.

        Raises:
            BudgetError: the arena is exhausted; parameters may be partly updated.
        """
        norm = global_norm(self._state.gradients(), self._state.layout.chunk_elements)
        if not math.isfinite(norm):
            return norm
        scalars = settings.scalars(self._kind, lr, step, clip=settings.clip(norm))
        for name, value in scalars.items():
            self._scalars[name].write(value)
        with undivided():
            for first, decays in self._state.layout.chunks():
                self._scalars["weight_decay"].write(settings.weight_decay if decays else 0.0)
                self._bind(first)
                self._graph.run(whole=True)
        return norm

    def rehearse(self, settings: Hyperparameters) -> None:
        """Run one chunk, which takes as much memory as any; the caller restores the state."""
        for name, value in settings.scalars(self._kind, lr=0.0, step=0).items():
            self._scalars[name].write(value)
        self._bind(0)
        self._graph.run()

    def _bind(self, first: int) -> None:
        roles = ("param", *self._state.slots)
        chunk = self._state.chunk(first, "acc", *roles)
        self._graph.bind({**chunk, **self._scalars}, {f"{role}_out": chunk[role] for role in roles})


def global_norm(gradients: Array, chunk_elements: int) -> float:
    """L2 norm of float32 ``gradients`` [N]: sums in float64, over one chunk after the other.

    Infinite where the sum of squares is beyond float32: so would be a second moment made of it.
    """
    squares = 0.0
    for first in range(0, len(gradients), chunk_elements):
        chunk = gradients[first : first + chunk_elements]
        squares += float(np.square(chunk, dtype=np.float64).sum())
    if squares > float(_FLOAT32.max):
        return math.inf
    return math.sqrt(squares + float(_FLOAT32.tiny))


__all__ = ["OptimizerStep", "global_norm"]
