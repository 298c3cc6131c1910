"""``--bits auto`` from the source to the bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.pack import rehearse, staged_files
from s2a_edge.pack.build import pack_captured
from s2a_edge.pack.compile import compile_backbone
from s2a_edge.pack.fit_budget import with_arena
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.saving import RECOMPUTED, SavedValue
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError, UsageError
from s2a_edge.spec.manifest import Calibration, Manifest
from s2a_edge.spec.manifest import SavedValue as ManifestSavedValue
from s2a_edge.spec.requirement import requirement
from tests.pack.compiled import LABELS, captured

OPTIONS = PackOptions(labels=LABELS, micro_batches=(4,), effective_batch=8, bits="auto", threads=1)


@pytest.fixture(scope="module", autouse=True)
def quick_rehearsal() -> Iterator[None]:
    """One run each, and no search for a smaller arena: both are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged_files, "_REPEAT", 1)
        patch.setattr(rehearse, "_smallest_arena", lambda graph, plan, *_: plan.arena_bytes)
        yield


def _packed(out: Path, model: str = "tiny_vit", **changes: object) -> Manifest:
    options = dataclasses.replace(OPTIONS, **changes)  # type: ignore[arg-type]  # names are data
    report = pack_captured(captured(model), out, options)
    with Bundle.open(report.path) as bundle:
        assert bundle.manifest == report.manifest
    return report.manifest


def _saved(model: str = "tiny_vit", **changes: object) -> tuple[SavedValue, ...]:
    """What the step saves, without packing it."""
    options = dataclasses.replace(OPTIONS, **changes)  # type: ignore[arg-type]  # names are data
    return compile_backbone(captured(model), options, lambda stage, detail: None).steps[4].saved


def _bytes(saved: Iterable[SavedValue | ManifestSavedValue]) -> int:
    return sum(s.stored_bytes for s in saved)


@pytest.fixture(scope="module")
def four_bytes() -> int:
    """Of all values at four bits."""
    return _bytes(_saved(bits=4))


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("auto")
    rng = np.random.default_rng(5)
    np.savez(folder / "data.npz", image=rng.standard_normal((9, 3, 16, 16)).astype(np.float32),
             labels=np.arange(9) % 5)
    return _packed(folder / "auto.s2a", calibration=folder / "data.npz")


def test_the_manifest_says_what_each_value_got_and_why(auto: Manifest) -> None:
    assert auto.recipe.bits == "auto"
    record = auto.precision.allocated
    assert auto.precision.policy == "auto" and record is not None
    assert auto.precision.calibration == Calibration("data.npz", 8)
    assert (record.samples, record.seed) == (8, 0)
    assert record.stored_bytes == _bytes(auto.saved) <= record.capacity_bytes
    assert 0 < record.least_error <= record.predicted_error
    seen = auto.graphs.train[-1].evidence.gradient_error
    assert seen is not None and seen.total == pytest.approx(record.predicted_error, rel=0.35)
    chosen = [s for s in auto.saved if s.reason]
    assert {s.kind for s in chosen} == {"normalized", "activation", "probability",
                                        "derivative:gelu"}
    for saved in chosen:
        assert saved.bits == 0 or saved.sensitivity[f"{saved.bits:g}"] >= 0
    assert all(not s.sensitivity for s in auto.saved if not s.reason)


def test_by_default_it_takes_the_bytes_of_four_bits(auto: Manifest, four_bytes: int) -> None:
    assert auto.precision.allocated is not None
    assert auto.precision.allocated.capacity_bytes == four_bytes


def test_saved_bytes_can_be_given(four_bytes: int) -> None:
    budget = 3 * four_bytes // (4 * 4)
    made = _saved(saved_budget_bytes=budget)
    assert 0.9 * 4 * budget < _bytes(made) <= 4 * budget
    assert made == _saved(saved_budget_bytes=budget)


def test_all_micro_batches_get_the_same_bits() -> None:
    options = dataclasses.replace(OPTIONS, micro_batches=(2, 4))
    made = compile_backbone(captured("tiny_vit"), options, lambda stage, detail: None)
    small, large = ({s.key: (s.codec, s.bits) for s in made.steps[n].saved} for n in (2, 4))
    assert small == large


def test_the_plan_fits_the_budget(auto: Manifest, tmp_path: Path) -> None:
    """Nothing else than the arena depends on bits; here it is a hundredth of the process."""
    usual = requirement(auto)
    # What is measured of a process varies more than this arena does: the rest is taken as it was.
    spare = usual.total_bytes // 50
    made = _packed(tmp_path / "fits.s2a", budget_bytes=usual.total_bytes + spare)
    assert requirement(made).total_bytes <= usual.total_bytes + spare


def test_an_arena_is_filled(four_bytes: int) -> None:
    made = compile_backbone(captured("tiny_vit"), OPTIONS, lambda stage, detail: None)
    usual = plan_memory(made.steps[4].model, threads=1).plan.arena_bytes
    # So small an arena follows its bits in jumps, and fewer of them hardly lower it.
    for share in (0.99, 1.3):
        found = with_arena(made, int(share * usual), OPTIONS)
        assert found is not None and found.allocated is not None
        planned = plan_memory(found.steps[4].model, threads=1).plan.arena_bytes
        assert (share - 0.15) * usual < planned <= share * usual
        assert _bytes(found.steps[4].saved) == found.allocated.allocation.stored_bytes
    assert with_arena(made, usual // 100, OPTIONS) is None


def test_what_does_not_fit_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as error:
        _packed(tmp_path / "x.s2a", budget_bytes=10**6)
    assert error.value.missing_bytes > 10**6
    assert list(tmp_path.iterdir()) == []


def test_too_few_saved_bytes_are_refused() -> None:
    with pytest.raises(BudgetError, match="saved values per sample") as error:
        _saved(saved_budget_bytes=100)
    assert error.value.missing_bytes > 0


@pytest.mark.parametrize("model", ["tiny_vit", "tiny_resnet"])
def test_bytes_and_errors_of_side_branches_are_those_of_the_step(model: str) -> None:
    options = dataclasses.replace(OPTIONS, adapters=("bias", "lrp", "lsb"), reduce=4)
    made = compile_backbone(captured(model), options, lambda stage, detail: None)
    assert made.allocated is not None
    allocation = made.allocated.allocation
    assert _bytes(made.steps[4].saved) == allocation.stored_bytes
    # What a branch computes again from its averaged channels is no choice of its own: it has no
    # bits, and coarser channels show an error.
    again = [s for s in made.steps[4].saved if s.codec == RECOMPUTED and s.kind == "activation"]
    assert again and not {s.key for s in again} & allocation.bits.keys()
    modules = {s.module for s in again}
    channels = {s.key for s in made.steps[4].saved if s.module in modules} & allocation.bits.keys()
    assert channels and all(allocation.why[key].sensitivity[2] > 0 for key in channels)


def test_a_backbone_without_a_choice_is_kept_exactly() -> None:
    assert [s for s in _saved("tiny_resnet")] == [s for s in _saved("tiny_resnet", bits=4)]


def test_options_that_contradict() -> None:
    with pytest.raises(UsageError, match="--bits auto beside it"):
        PackOptions(labels=LABELS, bits=4, saved_budget_bytes=1000)
    with pytest.raises(UsageError, match="auto or one of"):
        PackOptions(labels=LABELS, bits=5)
