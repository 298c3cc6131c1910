"""The search against brute force: every candidate compiled, planned and priced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2a_edge.pack.frozen import decode_nodes
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.search import candidates as grid
from s2a_edge.pack.search import search as search_module
from s2a_edge.pack.search.calibrate import Calibration
from s2a_edge.pack.search.candidates import Candidate
from s2a_edge.pack.search.cost import Costs, Rates
from s2a_edge.pack.search.drafts import Draft, Drafts
from s2a_edge.pack.search.frontier import Row
from s2a_edge.pack.search.options import SearchOptions
from s2a_edge.pack.search.search import Search
from s2a_edge.spec.requirement import Setting
from tests.pack.compiled import captured

# Rates as a processor's, and products that are slow enough for micro-batches to matter.
COSTS = Costs({"MatMul": Rates(1e-3, 2e-8, 0), "FusedMatMul": Rates(1e-3, 2e-8, 0),
               "Conv": Rates(2e-3, 3e-8, 0), "DequantizeLinear": Rates(1e-3, 0, 4e-6)},
              Rates(5e-4, 0, 1e-6), 1e-4)
NODE_BYTES = 2000
ERRORS = {32: 0.0, 8: 0.01, 4: 0.05, 2: 0.3}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Requirements without a rehearsal: arena, file of weights, sessions."""

    margin_bytes: int = 0

    def total_bytes(self, candidate: Candidate, draft: Draft) -> int:
        arena = max(draft.train.arena_bytes, draft.evaluation.arena_bytes)
        nodes = draft.train.node_count + draft.evaluation.node_count
        return self.margin_bytes + arena + draft.weights_bytes + NODE_BYTES * nodes + 4 * sum(
            elements for elements, _ in draft.trainables.values())


class Known(Calibration):
    """Times that nobody measured."""

    def costs(self) -> Costs:
        return COSTS


class FakeRuns:
    """Errors by bits; the half that comes last has most of the gradient."""

    def __init__(self, drafts: Drafts) -> None:
        self.drafts = drafts
        self.runs: list[Candidate] = []

    def start(self, base: Candidate, setting: Setting) -> Calibration:
        names = list(self.drafts.draft(base).trainables)
        made = Known(Memory(), [], dict.fromkeys(names, 1.0), {}, [], 0)  # type: ignore[arg-type]  # a stand-in
        self.run(made, base)
        return made

    def run(self, calibration: Calibration, candidate: Candidate, *, sessions: bool = False,
            ) -> None:
        self.runs.append(candidate)
        changes: dict[str, Any] = dict(candidate.saves.changes)
        bits = changes["bits"]
        error = 0.04 if bits == "auto" else ERRORS[bits]
        error *= 0.9 if changes["attention"] == "recompute" else 1.0
        calibration.errors[self.drafts.draft(candidate).signature] = dict.fromkeys(
            calibration.norms, error ** 2)


def _search(model: str, *, batch: int = 8, fixed: tuple[str, ...] = (), **changes: Any) -> Search:
    shape = {"input_shape": (3, 48, 48)} if model == "tiny_resnet" else {}
    base = PackOptions(classes=3, effective_batch=batch, budget_bytes=1, threads=1, native=False,
                       auto=SearchOptions(frozenset(fixed), **changes))
    return Search(captured(model, **shape), base, Path("unused"), calibrator=FakeRuns)


@pytest.fixture(autouse=True)
def small_weights_are_coded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_nodes, "_FEWEST_ELEMENTS", 512)
        yield


def _everything(search: Search) -> dict[tuple[str, bool], list[Row]]:
    """Every candidate by tier, each drafted."""
    assert search.calibration
    found: dict[tuple[str, bool], list[Row]] = {}
    for blocks in search.depths:
        for storage in search.storages:
            rows = [search.ordered(Candidate(n, way, storage, blocks))
                    for n in search.batches for way in search.ways]
            found.setdefault((blocks, storage == "int4"), []).extend(rows)
    return found


@pytest.mark.parametrize(("model", "batch"), [("tiny_vit", 2), ("tiny_resnet", 4)])
def test_within_3_percent_of_brute_force(
    model: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "SHARES", ())  # fixed bits; allocations have a test of their own
    fixed = ("attention", "recompute")
    search, fresh = (_search(model, batch=batch, fixed=fixed) for _ in range(2))
    everything = _everything(search)
    sizes = sorted(row.total_bytes for rows in everything.values() for row in rows)
    budgets = [*sizes[:: max(1, len(sizes) // 12)], sizes[-1], 2 * sizes[-1]]
    chosen = set()
    for budget_bytes in budgets:
        best = next((min(fitting, key=lambda row: row.step_ms) for rows in everything.values()
                     if (fitting := [row for row in rows if row.total_bytes <= budget_bytes
                                     and row.gradient_error <= 0.1])), None)
        found = fresh.find(budget_bytes)
        chosen.add(found.row.candidate)
        if best is None:
            assert not found.fits
            continue
        assert found.fits and found.row.drafted
        assert found.row.total_bytes <= budget_bytes
        assert found.row.candidate.blocks == best.candidate.blocks
        assert (found.row.candidate.frozen == "int4") == (best.candidate.frozen == "int4")
        assert found.row.step_ms <= 1.03 * best.step_ms
    assert len(chosen) >= 3  # the budgets do decide something


def test_few_candidates_are_compiled() -> None:
    search = _search("tiny_vit", batch=64)
    found = search.find(2**40)
    assert len(found.rows) == 7 * len(search.ways) * 3
    assert search.drafts.made < len(found.rows) / 4


def test_what_is_fixed_stays() -> None:
    search = _search("tiny_vit", fixed=("bits", "micro_batches", "frozen"))
    found = search.find(2**40)
    candidate = found.row.candidate
    assert (candidate.micro_batch, candidate.frozen) == (8, "fp32")
    assert dict(candidate.saves.changes)["bits"] == 4
    # Attention is stored or computed again, from q and k or from what these come from.
    assert len(found.rows) == 3


def test_errors_above_the_limit_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "SHARES", ())
    search = _search("tiny_vit", batch=2, fixed=("attention", "recompute", "frozen"),
                     max_gradient_error=0.005)
    found = search.find(2**40)
    assert found.row.gradient_error <= 0.005
    tight = search.find(min(row.total_bytes for row in found.rows) + 1)
    assert tight.row.gradient_error <= 0.005


def test_what_comes_closest_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "SHARES", ())
    search = _search("tiny_resnet", batch=2)
    found = search.find(1000)
    assert not found.fits
    tolerated = [row.total_bytes for row in found.rows if row.gradient_error <= 0.1]
    assert found.row.total_bytes <= 1.02 * min(tolerated)
    assert {row.candidate.blocks for row in found.rows} == {"all", "last:1"}
    assert {row.candidate.frozen for row in found.rows} == {"fp32", "fp16", "int8", "int4"}
    # Tiers of which not even the smallest fits are not weighed.
    assert sum(row.candidate.blocks == "last:1" for row in found.rows) == 2


def test_a_rejected_candidate_is_not_taken_again() -> None:
    search = _search("tiny_vit", batch=4, fixed=("bits", "attention"))
    first = search.find(2**40).row
    search.reject(first, first.total_bytes + 1000)
    second = search.find(2**40).row
    assert second.candidate != first.candidate
    # What one needed beyond its prediction, others are taken to need too.
    assert search.exact(first.candidate).total_bytes == first.total_bytes + 1000


def test_bits_for_each_value_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 bits do not fit and 2 are too coarse: an allocation between them does."""
    monkeypatch.setattr(search_module, "_WORTH", 0.0)
    # In so small a network saved values hardly show in the arena.
    monkeypatch.setattr(Memory, "total_bytes", lambda self, c, draft: draft.train.saved_bytes)
    search = _search("tiny_vit", fixed=("micro_batches", "recompute", "frozen", "blocks"))
    rows = {dict(row.candidate.saves.changes)["bits"]: row
            for row in search.rows(("all", ("fp32",)))
            if dict(row.candidate.saves.changes)["attention"] == "auto"}
    assert rows[2].total_bytes < rows[4].total_bytes
    least = min(row.total_bytes for row in search.rows(("all", ("fp32",)))
                if row.gradient_error <= 0.1)
    found = search.find(least - 64)
    assert search.drafts.measured is not None
    allocated = search.allocated(found.row.candidate)
    assert found.fits
    assert allocated is not None and len(set(allocated.allocation.bits.values())) > 1
    shares = {row.candidate.saves.share for row in found.rows}
    assert set(grid.SHARES) <= shares


def test_an_update_is_all_of_its_micro_batches() -> None:
    search = _search("tiny_vit", batch=6, fixed=("bits", "attention", "recompute", "frozen"))
    found = search.find(2**40)
    by_batch = {row.candidate.micro_batch: row for row in found.rows}
    assert sorted(by_batch) == [1, 2, 3, 4, 6]
    draft = search.drafts.draft(found.row.candidate)
    runs = math.ceil(6 / found.row.candidate.micro_batch)
    assert found.row.step_ms == pytest.approx(
        runs * COSTS.ms(draft.work) + COSTS.ms(draft.optimizer_work))
    # A batch of 4 takes two runs, of which the second is half empty.
    assert by_batch[4].step_ms > by_batch[3].step_ms


def test_an_estimate_is_near_its_draft() -> None:
    search = _search("tiny_vit", batch=16, fixed=("attention", "recompute"))
    for row in search.rows(("all", ("fp32", "fp16", "int8"))):
        if row.candidate.micro_batch != 8:
            continue
        exact = search.exact(row.candidate)
        assert row.step_ms == pytest.approx(exact.step_ms, rel=0.02)
        assert row.total_bytes == pytest.approx(exact.total_bytes, rel=0.03)
        assert dataclasses.replace(row, drafted=True).candidate == exact.candidate
