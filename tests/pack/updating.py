"""The optimizer graph run as training runs it: over chunks of flat buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2a_edge.pack.adapt import Trainable
from s2a_edge.pack.optimizer import SCALARS, STATES, optimizer_model
from s2a_edge.run.optimizer_step import global_norm
from s2a_edge.spec.state_layout import state_layout
from tests.pack.compiled import Arrays, run, session


class Update:
    """``kind``'s update of ``trainables``; arrays are named ``param.X``, ``acc.X``, ``m.X``."""

    def __init__(self, trainables: Sequence[Trainable], kind: str) -> None:
        self.trainables, self.kind = trainables, kind
        self.layout = state_layout((t.name, t.initial.size, t.decay) for t in trainables)
        self.session: Any = session(optimizer_model(self.layout.chunk_elements, kind))
        self.roles = ("param", *STATES[kind])
        self.norm = 0.0

    def __call__(self, state: Mapping[str, np.ndarray], scalars: Mapping[str, float]) -> Arrays:
        """Parameters and states after it; ``max_norm`` among ``scalars`` clips."""
        flat = {role: self._flat(state, role) for role in (*self.roles, "acc")}
        self.norm = global_norm(flat["acc"], self.layout.chunk_elements)
        if math.isfinite(self.norm):
            clip = min(1.0, scalars["max_norm"] / self.norm)
            given = {n: np.asarray(clip if n == "clip" else scalars[n], np.float32)
                     for n in SCALARS[self.kind]}
            for first, decays in self.layout.chunks():
                rows = slice(first, first + self.layout.chunk_elements)
                decay = given["weight_decay"] * np.float32(decays)
                made = run(self.session, {**given, "weight_decay": np.asarray(decay, np.float32),
                                          **{role: a[rows] for role, a in flat.items()}})
                for role in self.roles:
                    flat[role][rows] = made[f"{role}_out"]
        return {f"{role}.{t.name}": self._piece(flat[role], t) for role in self.roles
                for t in self.trainables}

    def _piece(self, flat: np.ndarray, trainable: Trainable) -> np.ndarray:
        first, initial = self.layout.first[trainable.name], trainable.initial
        return flat[first : first + initial.size].reshape(initial.shape)

    def _flat(self, state: Mapping[str, np.ndarray], role: str) -> np.ndarray:
        flat = np.zeros(self.layout.elements, np.float32)
        for t in self.trainables:
            self._piece(flat, t)[...] = state[f"{role}.{t.name}"]
        return flat
