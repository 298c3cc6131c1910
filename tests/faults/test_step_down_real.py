"""Real limits, hit for real: the process grows, the arena is exhausted; nothing is injected."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.process_arena import can_replace_arena
from s2a_edge.run.report import Progress
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.units import MIB
from tests.run.toy_bundle import set_arenas, write_samples, write_toy_bundle
from tests.run.toy_graphs import ToySize

pytestmark = pytest.mark.skipif(
    not can_replace_arena(), reason="onnxruntime before 1.23 keeps a process's first arena"
)
WIDE = ToySize(hidden=200_000)
ARENAS = {1: 16 * MIB, 4: 28 * MIB, 16: 80 * MIB}
OPTIONS: dict[str, Any] = {"epochs": 2, "lr": 0.01}


def make(folder: Path, arenas: dict[int, int]) -> tuple[Path, Path]:
    bundle = write_toy_bundle(
        folder / "bundle",
        size=WIDE,
        micro_batches=(1, 4, 16),
        effective_batch=16,
        eval_batch=1,
    )
    set_arenas(bundle, arenas, arenas[1])
    return bundle, write_samples(folder / "train.npz", 64, WIDE)


def assert_close(one: Path, two: Path) -> None:
    (info_1, ours), (info_2, theirs) = (read_checkpoint(r / "last.safetensors") for r in (one, two))
    assert info_1.global_step == info_2.global_step == 8
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_an_arena_that_is_too_small_for_the_larger_micro_batches(tmp_path: Path) -> None:
    """Its own exception, out of the running graph, at the rehearsal; the next arena is as small."""
    bundle, data = make(tmp_path, dict.fromkeys(ARENAS, 28 * MIB))
    trainer = Trainer(bundle, seed=3)
    summary = trainer.fit(data, out=tmp_path / "run", **OPTIONS)
    assert [s.before for s in summary.step_downs] in ([16], [16, 4])
    assert "smaller than requested bytes" in summary.step_downs[0].reason or (
        "bytes asked for" in summary.step_downs[0].reason
    )
    plenty, _ = make(tmp_path / "plenty", ARENAS)
    Trainer(plenty, seed=3).fit(data, out=tmp_path / "whole", **OPTIONS)
    assert_close(tmp_path / "whole", tmp_path / "run")


def test_a_process_that_grows_gives_memory_back_and_goes_on(tmp_path: Path) -> None:
    bundle, data = make(tmp_path, ARENAS)
    Trainer(bundle, seed=3).fit(data, out=tmp_path / "whole", **OPTIONS)
    gc.collect()
    ballast: list[Any] = []
    resident: list[int] = []  # once it has grown

    def grow(now: Progress) -> None:
        if ballast and now.phase == "train":
            resident.append(now.memory_bytes)
        if (now.phase, now.epoch, now.step) == ("train", 2, 1) and not ballast:
            ballast.append(np.ones(budget_bytes - now.memory_bytes + 8 * MIB, np.uint8))

    budget_bytes = Trainer(bundle, seed=3).requirement.total_bytes + 16 * MIB
    trainer = Trainer(bundle, seed=3, budget_bytes=budget_bytes)
    assert trainer.micro_batch == 16
    summary = trainer.fit(data, out=tmp_path / "run", on_progress=grow, **OPTIONS)
    assert summary.step_downs and summary.micro_batch < 16
    assert max(resident) <= budget_bytes < trainer.peak_bytes
    assert_close(tmp_path / "whole", tmp_path / "run")
