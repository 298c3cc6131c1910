"""The search of one pack: calibrated once, asked for any number of budgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from s2a_edge.native import find_library
from s2a_edge.pack.allocation.measured import measured_allocator
from s2a_edge.pack.calibration_data import calibration_samples
from s2a_edge.pack.capture import Captured
from s2a_edge.pack.compile import Allocated
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.network import sliced_backbone
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.search import candidates
from s2a_edge.pack.search.calibrate import Calibration, Calibrator, Runs, Squares
from s2a_edge.pack.search.candidates import Candidate, Saves
from s2a_edge.pack.search.choose import SLACK, choose
from s2a_edge.pack.search.cost import Costs, device_costs
from s2a_edge.pack.search.drafts import Drafts
from s2a_edge.pack.search.estimate import LOW_BATCH, Pricing, estimated
from s2a_edge.pack.search.frontier import Row
from s2a_edge.pack.search.options import SearchOptions
from s2a_edge.pack.training_steps import usable_threads
from s2a_edge.spec.device_profile import load_profile
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.frozen_weights import FrozenStorage
from s2a_edge.spec.requirement import Setting

Stage = Callable[[str, str], None]

# Allocations of bits take a minute to measure; they are, where they might save this share of time.
_WORTH = 0.03
# What the smallest allocation may save of the coarsest fixed bits' values.
_BELOW_COARSEST = 0.25
# Samples that sensitivities are measured on: a search weighs much else.
_PROBE_SAMPLES = 2

Tier = tuple[str, tuple[FrozenStorage, ...]]
"""What trains, and storages of frozen weights; see ``choose``."""


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes:
        row: the configuration and what is predicted of it.
        fits: it is predicted to fit; else it is what comes closest.
        rows: all that were weighed.
    """

    row: Row
    fits: bool
    rows: tuple[Row, ...]


class Search:
    """Finds configurations of one pack.

    Args:
        captured: the source.
        base: options of the pack, with ``auto``.
        folder: an empty folder for files.
        on_stage: told what is done.
        calibrator: makes the runs; None: real ones on this host.

    Raises:
        UsageError: times are to come from a device whose profile lacks them.
    """

    def __init__(self, captured: Captured, base: PackOptions, folder: Path,
                 on_stage: Stage = lambda stage, detail: None,
                 calibrator: Callable[[Drafts], Runs] | None = None) -> None:
        assert base.auto is not None
        self.started_s = time.monotonic()
        self.options: SearchOptions = base.auto
        self.base = base
        self._captured, self._on_stage, self._folder = captured, on_stage, folder
        on_device = self.options.times_from == "device"
        self.setting = Setting(provider="cuda") if on_device else Setting()
        self._device_costs = _device_costs(base) if on_device else None
        kernels = find_library() if base.native and not on_device else None
        self.drafts = Drafts(captured, base, native=kernels is not None)
        self.batches = candidates.micro_batches(base, self.options, captured.fixed_batch)
        self.storages = candidates.storages(base, self.options, cpu=not on_device)
        self.ways = list(candidates.ways_to_save(base, self.options))
        self.allocations = candidates.allocations(base, self.options)
        self._calibrator: Runs = Calibrator(
            captured, self.drafts, folder, kernels=kernels, times=not on_device,
            on_stage=on_stage) if calibrator is None else calibrator(self.drafts)
        self._tier_rows: dict[Tier, list[Row]] = {}
        self._rejected: set[Candidate] = set()

    @property
    def _calibrated_batch(self) -> int:
        fixed = self._captured.fixed_batch
        if fixed not in (None, 1):
            assert fixed is not None
            return fixed
        return max((n for n in self.batches if n <= LOW_BATCH), default=LOW_BATCH)

    @cached_property
    def depths(self) -> tuple[str, ...]:
        """What may train, all of it first."""
        first = Candidate(self._calibrated_batch, Saves("", ()), self.storages[0],
                          self.base.blocks)
        blocks = len(self.drafts.sliced(first).adapted.blocks)
        return candidates.depths(self.base, self.options, blocks)

    def _candidate(self, way: Saves, storage: FrozenStorage | None = None,
                   batch: int | None = None) -> Candidate:
        return Candidate(batch or self._calibrated_batch, way, storage or self.storages[0],
                         self.depths[0])

    @cached_property
    def calibration(self) -> Calibration:
        """The timed runs, made when first asked for."""
        if not self.ways:  # bits are fixed to an allocation
            self._measure_sensitivities()
            self.ways, self.allocations = list(self.allocations), ()
        start = self._candidate(self.ways[len(self.ways) // 2])
        made = self._calibrator.start(start, self.setting)
        kept: list[Saves] = []
        for way in self.ways:
            candidate = self._candidate(way)
            signature = self.drafts.draft(candidate).signature
            if any(signature == self.drafts.draft(self._candidate(k)).signature for k in kept):
                continue  # the same step: nothing to choose here
            kept.append(way)
            if signature not in made.errors:
                self._calibrator.run(made, candidate, sessions=way == self.ways[0])
        self.ways = kept
        # Where estimates start from: neither the finest nor the coarsest.
        self._reference = kept[len(kept) // 2]
        if not self.drafts.codes_weights(self._candidate(self._reference, self.storages[-1])):
            self.storages = self.storages[:1]  # all are too small to be coded
        for storage in self.storages[1:]:
            self._calibrator.run(made, self._candidate(self._reference, storage),
                                 sessions=storage == self.storages[-1])
        if self.batches[0] < self._calibrated_batch:
            self._calibrator.run(made, self._candidate(self._reference, batch=self.batches[0]))
        return made

    @cached_property
    def costs(self) -> Costs:
        """The time model; may be replaced by another (tests do)."""
        return self._device_costs or self.calibration.costs()

    def _errors(self, way: Saves) -> Squares:
        return self.calibration.errors[self.drafts.draft(self._candidate(way)).signature]

    @property
    def pricing(self) -> Pricing:
        """Turns candidates into rows."""
        calibration = self.calibration
        return Pricing(self.drafts.draft, calibration.memory.total_bytes, self.costs,
                       self.base.effective_batch, calibration.norms, self._errors)

    def _tiers(self) -> Iterator[Tier]:
        finer = tuple(s for s in self.storages if s != "int4")
        for blocks in self.depths:
            if finer:
                yield blocks, finer
            if "int4" in self.storages:
                yield blocks, ("int4",)

    def rows(self, tier: Tier) -> list[Row]:
        """All candidates of a tier, with the fixed bits."""
        if tier not in self._tier_rows:
            assert self.calibration
            blocks, storages = tier
            self._on_stage("weigh", f"--blocks {blocks}, {' '.join(storages)}")
            self._tier_rows[tier] = self._estimated(self.ways, tier)
        return self._tier_rows[tier]

    def _estimated(self, ways: Sequence[Saves], tier: Tier) -> list[Row]:
        reference = self._reference if self._reference in ways else ways[0]
        ordered = [reference, *(w for w in ways if w != reference)]
        return estimated(self.pricing, self.batches, ordered, tier[1], tier[0])

    def allowed(self, row: Row) -> bool:
        """Whether the error of a row is tolerated; bits that the user fixed always are."""
        if row.candidate in self._rejected:
            return False
        return "bits" in self.options.fixed or (
            row.gradient_error <= self.options.max_gradient_error)

    def find(self, budget_bytes: int) -> Choice:
        """The configuration to take for a budget; see ``choose`` for the order of preference."""
        assert self.calibration  # may find that there is less to choose
        seen: list[Row] = []
        for tier in self._tiers():
            if seen:
                smallest = self._smallest(tier, seen)
                if smallest.least_bytes * (1 - SLACK) > budget_bytes:
                    seen.append(smallest)  # nothing of this tier can fit
                    continue
            rows = self.rows(tier)
            found = choose(rows, budget_bytes, self.exact, self.ordered, self.allowed)
            if self._allocations_may_help(rows, found, budget_bytes):
                rows = [*rows, *self._allocation_rows(tier)]
                self._tier_rows[tier] = rows
                found = choose(rows, budget_bytes, self.exact, self.ordered, self.allowed)
            seen += rows
            if found is not None:
                return Choice(found, True, self._with(seen, found))
        closest = min(filter(self.allowed, seen), key=lambda row: row.total_bytes,
                      default=min(seen, key=lambda row: row.total_bytes))
        closest = self.ordered(closest.candidate)
        return Choice(closest, closest.total_bytes <= budget_bytes, self._with(seen, closest))

    def _smallest(self, tier: Tier, seen: Sequence[Row]) -> Row:
        """The candidate of a tier that needs least, as far as tiers are alike in what does."""
        least = min((row for row in seen if row.candidate.micro_batch == self.batches[0]),
                    key=lambda row: (not self.allowed(row), row.total_bytes))
        made = (self.exact(Candidate(self.batches[0], least.candidate.saves, storage, tier[0]))
                for storage in tier[1])
        return min(made, key=lambda row: row.least_bytes)

    def exact(self, candidate: Candidate) -> Row:
        """The drafted row of a candidate."""
        return self.pricing.row(candidate, self.drafts.draft(candidate))

    def ordered(self, candidate: Candidate) -> Row:
        """The same, its nodes in the order of the bundle."""
        return self.pricing.row(candidate, self.drafts.ordered(candidate))

    def allocated(self, candidate: Candidate) -> Allocated | None:
        """The bits of a candidate with an allocation."""
        return self.drafts.allocated(candidate)

    def reject(self, row: Row, needed_bytes: int) -> None:
        """Learns that a rehearsed candidate needs more than was predicted and does not fit."""
        beyond = max(0, needed_bytes - row.total_bytes)
        self._rejected.add(row.candidate)
        memory = self.calibration.memory
        self.calibration.memory = replace(memory, margin_bytes=memory.margin_bytes + beyond)
        self._tier_rows.clear()

    def _with(self, rows: Sequence[Row], drafted: Row) -> tuple[Row, ...]:
        return (*(row for row in rows if row.candidate != drafted.candidate), drafted)

    def _allocations_may_help(self, rows: Sequence[Row], found: Row | None,
                              budget_bytes: int) -> bool:
        """Whether bits for each value might make a step that fits faster, at their very best:

        as fast as the fastest way to save, with a little less than the smallest one keeps.
        """
        if not self.allocations or any(row.candidate.saves.share for row in rows):
            return False
        alike: dict[tuple[int, str], list[Row]] = {}
        for row in rows:
            alike.setdefault((row.candidate.micro_batch, row.candidate.frozen), []).append(row)
        coarsest = self.drafts.draft(self._candidate(self.ways[-1])).train.saved_bytes
        fastest_ms = float("inf")
        for (batch, _), group in alike.items():
            less = _BELOW_COARSEST * coarsest * batch / self._calibrated_batch
            if min(row.total_bytes for row in group) - less <= budget_bytes:
                fastest_ms = min(fastest_ms, *(row.step_ms for row in group))
        return fastest_ms < (float("inf") if found is None else (1 - _WORTH) * found.step_ms)

    def _allocation_rows(self, tier: Tier) -> list[Row]:
        self._measure_sensitivities()
        calibration = self.calibration
        for way in self.allocations:
            candidate = self._candidate(way)
            if self.drafts.draft(candidate).signature not in calibration.errors:
                self._calibrator.run(calibration, candidate)
        return self._estimated(self.allocations, tier)

    def _measure_sensitivities(self) -> None:
        """Once, of all saved values, with everything training."""
        if self.drafts.measured is not None:
            return
        base, threads = self.base, usable_threads(self.base)
        fixed = self._captured.fixed_batch
        batch = fixed if fixed not in (None, 1) else min(_PROBE_SAMPLES, self._calibrated_batch)
        assert batch is not None
        backbone, sliced = sliced_backbone(self._captured, batch, base)
        adapted = sliced.adapted
        samples = calibration_samples(backbone, base, self._on_stage, self._captured.tokenizer)
        saved = differentiate(adapted, Precision(32, "store"), base.loss,
                              recompute=base.recompute).saved
        self.drafts.measured = measured_allocator(
            adapted, saved, batch, samples, loss=base.loss, threads=threads, attention="auto",
            wholes=(), recompute=base.recompute, on_stage=self._on_stage)


def _device_costs(base: PackOptions) -> Costs:
    if base.device is None:
        raise UsageError(where="--times-from device", expected="--device beside it", got="none",
                         todo="name a device profile")
    return device_costs(load_profile(base.device))


__all__ = ["Choice", "Search", "Tier"]
