"""All candidates at once, from drafts of a few.

With everything else the same, memory and time of a step grow linearly with its samples, or nearly
so (the peak may change places). So each way to save is drafted at two micro-batches, and each
storage of weights at one way to save: it adds the same to all of them. What matters for a choice is
drafted itself before it is believed (``choose``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from s2a_edge.pack.network import FEW_SAMPLES
from s2a_edge.pack.search.calibrate import Squares
from s2a_edge.pack.search.candidates import Candidate, Saves
from s2a_edge.pack.search.cost import Costs
from s2a_edge.pack.search.drafts import Draft
from s2a_edge.pack.search.frontier import Row
from s2a_edge.spec.frozen_weights import FrozenStorage

LOW_BATCH = 4


@dataclass(frozen=True)
class Figures:
    """Memory of the process, at the very least too, and time of one run of the training graph."""

    total_bytes: float
    least_bytes: float
    run_ms: float

    def plus(self, other: Figures, times: float = 1.0) -> Figures:
        """This and ``times`` the other."""
        return Figures(self.total_bytes + times * other.total_bytes,
                       self.least_bytes + times * other.least_bytes,
                       self.run_ms + times * other.run_ms)

    def minus(self, other: Figures) -> Figures:
        """What this is more than the other."""
        return self.plus(other, -1.0)


@dataclass(frozen=True)
class Pricing:
    """What turns a draft into a row.

    Attributes:
        draft: drafts a candidate.
        total_bytes: what a drafted candidate needs.
        costs: the time model.
        effective_batch: samples of an update.
        norms: squared norms of the exact gradients of all trainables.
        errors: of a way to save, the squared errors of all trainables' gradients.
    """

    draft: Callable[[Candidate], Draft]
    total_bytes: Callable[[Candidate, Draft], int]
    costs: Costs
    effective_batch: int
    norms: Squares
    errors: Callable[[Saves], Squares]

    def figures(self, candidate: Candidate) -> Figures:
        """Of a candidate that is drafted for it."""
        return self._figures(candidate, self.draft(candidate))

    def _figures(self, candidate: Candidate, draft: Draft) -> Figures:
        least = replace(draft, train=replace(draft.train, arena_bytes=draft.train.least_bytes))
        return Figures(self.total_bytes(candidate, draft), self.total_bytes(candidate, least),
                       self.costs.ms(draft.work))

    def row(self, candidate: Candidate, draft: Draft) -> Row:
        """The row of ``candidate``, drafted."""
        return self._row(candidate, self._figures(candidate, draft), draft, drafted=True)

    def estimate(self, candidate: Candidate, figures: Figures, like: Draft) -> Row:
        """The row of ``candidate`` with estimated ``figures``; ``like`` has the same depth."""
        return self._row(candidate, figures, like, drafted=False)

    def _row(self, candidate: Candidate, figures: Figures, like: Draft, *, drafted: bool) -> Row:
        runs = math.ceil(self.effective_batch / candidate.micro_batch)
        step_ms = runs * figures.run_ms + self.costs.ms(like.optimizer_work)
        errors = self.errors(candidate.saves)
        norm = sum(self.norms.get(name, 0.0) for name in like.trainables)
        squared = sum(errors.get(name, 0.0) for name in like.trainables)
        whole = sum(self.norms.values())
        return Row(candidate, round(figures.total_bytes), step_ms,
                   math.sqrt(squared / norm) if norm else 0.0,
                   max(0.0, 1 - norm / whole) if whole else 0.0, drafted,
                   round(figures.least_bytes))


def estimated(pricing: Pricing, batches: Sequence[int], saves: Sequence[Saves],
              storages: Sequence[FrozenStorage], blocks: str) -> list[Row]:
    """Rows of all candidates of one depth; the first way to save and storage are drafted most.

    Args:
        pricing: of one pack.
        batches: micro-batches in ascending order.
        saves: ways to save.
        storages: of frozen weights.
        blocks: what trains.
    """
    high = batches[-1]
    low = max((n for n in batches[:-1] if n <= LOW_BATCH), default=batches[0])
    first, plain = saves[0], storages[0]
    like = pricing.draft(Candidate(low, first, plain, blocks))
    lines: dict[Saves, tuple[Figures, Figures]] = {}
    for way in saves:
        at_low = pricing.figures(Candidate(low, way, plain, blocks))
        at_high = pricing.figures(Candidate(high, way, plain, blocks))
        slope = Figures(0, 0, 0).plus(at_high.minus(at_low), 1 / (high - low)) if high > low \
            else Figures(0, 0, 0)
        lines[way] = at_low, slope
    drafted = [n for n in batches if n <= FEW_SAMPLES or n == low]
    more = {(storage, n): pricing.figures(Candidate(n, first, storage, blocks)).minus(
        pricing.figures(Candidate(n, first, plain, blocks)))
        for storage in storages[1:] for n in drafted}
    rows = []
    for way, (at_low, slope) in lines.items():
        for n in batches:
            plainly = at_low.plus(slope, n - low)
            for storage in storages:
                added = Figures(0, 0, 0) if storage == plain \
                    else more[storage, n if n in drafted else low]
                rows.append(pricing.estimate(Candidate(n, way, storage, blocks),
                                             plainly.plus(added), like))
    return rows


__all__ = ["LOW_BATCH", "Figures", "Pricing", "estimated"]
