"""What training a candidate needs: exact where a plan tells, calibrated where only a run does.

The requirement is computed by the code that computes it of a bundle, from a manifest that says of
the candidate what is known of it: plans, the file of weights, trainables. Python, the runtime and
what a session takes for each node come from rehearsals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2a_edge.pack.plan import ArenaPlan
from s2a_edge.pack.search.candidates import Candidate
from s2a_edge.pack.search.drafts import Draft
from s2a_edge.spec.manifest import Manifest, WeightEntry
from s2a_edge.spec.memory_plan import Evidence, MemoryPlan
from s2a_edge.spec.requirement import PIPELINE_BYTES, LineKind, Setting, requirement


@dataclass(frozen=True)
class SessionLine:
    """What a session takes: ``base_bytes + node_bytes * nodes``, not below anything measured."""

    base_bytes: float
    node_bytes: float

    def of(self, nodes: int) -> int:
        """Bytes of a session of so many nodes."""
        return max(0, round(self.base_bytes + self.node_bytes * nodes))


def fit_sessions(seen: Sequence[tuple[int, int]]) -> SessionLine:
    """Through (nodes, bytes) of rehearsals: least squares, raised until none lies above it."""
    nodes, sizes = (np.array(x, float) for x in zip(*seen, strict=True))
    spread = nodes - nodes.mean()
    slope = float(spread @ sizes / (spread @ spread)) if spread.any() else 0.0
    slope = max(0.0, slope)
    return SessionLine(float((sizes - slope * nodes).max()), slope)


@dataclass(frozen=True)
class Memory:
    """Predicts requirements.

    Attributes:
        manifest: of the rehearsed configuration.
        sessions: what sessions take.
        margin_bytes: added to every prediction: by how much rehearsals differed in what they have
            in common, and what later ones needed beyond their prediction.
        setting: what else a requirement depends on.
    """

    manifest: Manifest
    sessions: SessionLine
    margin_bytes: int
    setting: Setting

    def total_bytes(self, candidate: Candidate, draft: Draft) -> int:
        """What the whole process of training needs with ``candidate``."""
        needed = requirement(self._manifest(candidate, draft), setting=self.setting)
        beyond = requirement(self.manifest, setting=self.setting).of_kind(LineKind.OTHER)
        return needed.total_bytes + max(0, beyond - PIPELINE_BYTES) + self.margin_bytes

    def _manifest(self, candidate: Candidate, draft: Draft) -> Manifest:
        """The rehearsed manifest, of another configuration as far as a requirement reads it."""
        graphs, size = self.manifest.graphs, draft.weights_bytes
        train, update = graphs.train[0], graphs.optimizer
        batch = candidate.micro_batch
        step = replace(train, batch=batch, native=None, plan=_like(train.plan, draft.train),
                       evidence=self._evidence(train.evidence, draft.train))
        evaluation = replace(graphs.eval, batch=batch,
                             plan=_like(graphs.eval.plan, draft.evaluation),
                             evidence=self._evidence(graphs.eval.evidence, draft.evaluation))
        update = replace(update, plan=_like(update.plan, draft.optimizer),
                         evidence=self._evidence(update.evidence, draft.optimizer))
        like = self.manifest.trainables[0]
        trainables = tuple(replace(like, name=name, shape=(elements,), decay=decays,
                                   size_bytes=4 * elements)
                           for name, (elements, decays) in draft.trainables.items())
        weights = (WeightEntry("weights", "uint8", (size,), 0, size),)
        return replace(self.manifest, trainables=trainables, weights=weights,
                       graphs=replace(graphs, train=(step,), eval=evaluation, optimizer=update))

    def _evidence(self, seen: Evidence, plan: ArenaPlan) -> Evidence:
        # What exceeds the plan is added apart: a peak of 0 exceeds nothing.
        return replace(seen, session_bytes=self.sessions.of(plan.node_count),
                       process_peak_bytes=0)


def _like(plan: MemoryPlan, arena: ArenaPlan) -> MemoryPlan:
    """What a requirement reads of a plan."""
    return replace(plan, arena_bytes=arena.arena_bytes, node_count=arena.node_count,
                   pool_bytes=arena.pool_bytes)


__all__ = ["Memory", "SessionLine", "fit_sessions"]
