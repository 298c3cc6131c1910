from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.run import memory_check
from s2a_edge.run.data import DataCheck, open_data
from s2a_edge.run.headroom import Room
from s2a_edge.run.process_memory import read_memory
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError, UsageError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import LineKind, Requirement, Setting, requirement
from s2a_edge.spec.units import MIB

SETTING = Setting(runtime_base_bytes=40 * MIB, prefetch=False)


@pytest.fixture
def manifest(toy: Path) -> Manifest:
    """With an arena of 8 MiB for micro-batch 2, 4 MiB for 1."""
    manifest = Bundle.open(toy).manifest
    graphs = manifest.graphs
    small, large = graphs.train
    half = dataclasses.replace(small.plan, arena_bytes=4 * MIB)
    train = (dataclasses.replace(small, plan=half), large)
    update = dataclasses.replace(graphs.optimizer, plan=half)
    eval_ = dataclasses.replace(graphs.eval, plan=half)
    graphs = dataclasses.replace(graphs, train=train, optimizer=update, eval=eval_)
    return dataclasses.replace(manifest, graphs=graphs)


def test_the_largest_micro_batch_that_fits_is_chosen(manifest: Manifest) -> None:
    large = requirement(manifest, micro_batch=2, setting=SETTING).total_bytes
    for budget_bytes, micro_batch in ((None, 2), (large, 2), (large - 1, 1)):
        chosen = memory_check.choose(manifest, budget_bytes, None, SETTING)
        assert chosen.micro_batch == micro_batch


def test_a_wanted_micro_batch_is_not_exchanged_for_another(manifest: Manifest) -> None:
    assert memory_check.choose(manifest, None, 1, SETTING).micro_batch == 1
    large = requirement(manifest, micro_batch=2, setting=SETTING).total_bytes
    with pytest.raises(BudgetError) as caught:
        memory_check.choose(manifest, large - 1000, 2, SETTING)
    assert (caught.value.missing_bytes, caught.value.exit_code) == (1000, 3)
    with pytest.raises(UsageError):
        memory_check.choose(manifest, None, 3, SETTING)


def test_what_does_not_fit_is_refused_with_what_is_missing(manifest: Manifest) -> None:
    small = requirement(manifest, micro_batch=1, setting=SETTING).total_bytes
    with pytest.raises(BudgetError) as caught:
        memory_check.choose(manifest, small - 12345, None, SETTING)
    assert caught.value.missing_bytes == 12345


def test_what_is_left_around_the_process_bounds_the_micro_batch_too(manifest: Manifest) -> None:
    """Mapped weights need no room, what the process holds already neither."""
    setting = Setting(runtime_base_bytes=read_memory().rss_bytes + 64 * MIB, prefetch=False)
    large, small = (requirement(manifest, micro_batch=n, setting=setting) for n in (2, 1))
    held_bytes = read_memory().rss_bytes

    def room(needed: Requirement, more_bytes: int) -> Room:
        anonymous_bytes = needed.total_bytes - needed.of_kind(LineKind.WEIGHTS)
        return Room("a group", anonymous_bytes - held_bytes + more_bytes)

    def chosen(budget_bytes: int | None, wanted: int | None, left: Room) -> int:
        return memory_check.choose(manifest, budget_bytes, wanted, setting, left).micro_batch

    assert chosen(None, None, room(large, MIB)) == 2
    assert chosen(None, None, room(large, -MIB)) == 1
    assert chosen(2 * large.total_bytes, None, room(large, -MIB)) == 1
    with pytest.raises(BudgetError, match="left by a group beside the headroom"):
        chosen(None, 2, room(large, -MIB))
    with pytest.raises(BudgetError) as caught:
        chosen(None, None, room(small, -2 * MIB))
    assert caught.value.exit_code == 3
    assert abs(caught.value.missing_bytes - 2 * MIB) < MIB
    cuda = dataclasses.replace(setting, provider="cuda")
    assert memory_check.choose(manifest, None, 2, cuda, Room("a group", 0)).micro_batch == 2


def test_what_is_resident_now_is_the_base() -> None:
    before_bytes = read_memory().rss_bytes
    setting = memory_check.measure_setting("cpu")
    assert setting.runtime_base_bytes is not None
    grown_bytes = setting.runtime_base_bytes - before_bytes
    assert abs(grown_bytes - memory_check.LIBRARY_GROWTH_BYTES) < 8 * MIB
    assert not setting.prefetch


def test_a_data_set_that_is_held_in_memory_counts(manifest: Manifest, tmp_path: Path) -> None:
    """A compressed archive is unpacked: 40,000 samples of 24 bytes and a label of 8."""
    x = np.zeros((40_000, 6), np.float32)
    np.savez_compressed(tmp_path / "d.npz", x=x, labels=np.zeros(len(x), np.int64))
    data = open_data(tmp_path / "d.npz", manifest)
    assert data.resident_bytes > x.nbytes
    held_bytes = data.resident_bytes
    needed = requirement(manifest, micro_batch=1, setting=SETTING).total_bytes
    enough = needed + 2 * held_bytes
    memory_check.require_room_for_data(manifest, 1, enough, SETTING, [data, data])
    with pytest.raises(BudgetError) as caught:
        memory_check.require_room_for_data(manifest, 1, enough - 77, SETTING, [data, data])
    assert caught.value.missing_bytes == 77


def test_the_largest_image_counts(manifest: Manifest, toy: Path, train_npz: Path) -> None:
    class LargeImages:
        def __init__(self) -> None:
            self._data = open_data(train_npz, Bundle.open(toy).manifest)

        def __len__(self) -> int:
            return len(self._data)

        def __getattr__(self, name: str) -> object:
            return getattr(self._data, name)

        def check(self) -> DataCheck:
            return DataCheck(samples=38, decode_bytes=100 * MIB, largest="huge.jpg")

    from tests.spec.bundle_samples import image_preprocessing

    images = dataclasses.replace(manifest, preprocessing=image_preprocessing())
    needed = requirement(images, micro_batch=1, setting=SETTING)
    image_bytes = needed.of_kind(LineKind.INPUTS)
    assert image_bytes < 100 * MIB
    budget_bytes = needed.total_bytes + 80 * MIB
    data = LargeImages()
    with pytest.raises(BudgetError):
        memory_check.require_room_for_data(images, 1, budget_bytes, SETTING, [data])  # type: ignore[list-item]  # a DataSet through __getattr__
