"""Memory gets short while training: the run goes on with a smaller micro-batch, or leaves saved."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.graph import Graph
from s2a_edge.run.headroom import Shortage
from s2a_edge.run.process_arena import can_replace_arena
from s2a_edge.run.report import Progress
from s2a_edge.run.step_down import StepDown, remember, remembered, smaller
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError, CheckpointError
from s2a_edge.spec.requirement import DEFAULT_SETTING, requirement
from s2a_edge.spec.units import MIB
from tests.run.toy_bundle import set_arenas, write_toy_bundle

pytestmark = pytest.mark.skipif(
    not can_replace_arena(), reason="onnxruntime before 1.23 keeps a process's first arena"
)
OPTIONS: dict[str, Any] = {"epochs": 3, "lr": 0.05, "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Micro-batches 1, 2 and 4 in arenas of 2, 4 and 8 MiB; effective batch 4."""
    folder = tmp_path_factory.mktemp("b") / "bundle"
    write_toy_bundle(folder, micro_batches=(1, 2, 4))
    return set_arenas(folder, {n: 2 * n * MIB for n in (1, 2, 4)}, MIB)


def exhausted(node: str = "train: node 'x'") -> BudgetError:
    return BudgetError(where=node, expected="a", got="b", todo="c", missing_bytes=5)


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes the n-th run of a graph run out of memory, after it wrote what it writes."""

    def install(*broken: tuple[str, int]) -> list[str]:
        real, counts, broke = Graph.run, dict[str, int](), list[str]()

        def run(graph: Graph, *, whole: bool = False) -> None:
            counts[graph.name] = counts.get(graph.name, 0) + 1
            real(graph, whole=whole)
            if (graph.name, counts[graph.name]) in broken:
                broke.append(graph.name)
                raise exhausted(graph.name)

        monkeypatch.setattr(Graph, "run", run)
        return broke

    return install


def fit(bundle: Path, data: Path, val: Path, out: Path, **options: Any) -> Trainer:
    trainer = Trainer(bundle, seed=3, micro_batch=options.pop("micro_batch", None))
    trainer.fit(data, val=val, out=out, **{**OPTIONS, **options})
    return trainer


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def assert_same_trajectory(one: Path, two: Path) -> None:
    """The same steps, each once, and the same result up to the order of float32 sums."""
    ours, theirs = steps(one), steps(two)
    for key in ("epoch", "step", "global_step", "samples", "lr"):
        assert [s[key] for s in ours] == [s[key] for s in theirs]
    for key in ("loss", "grad_norm", "accuracy"):
        np.testing.assert_allclose(
            [s[key] for s in ours], [s[key] for s in theirs], rtol=2e-4, atol=1e-6
        )
    for name in ("last.safetensors", "best.safetensors"):
        (_, ours_), (_, theirs_) = (read_checkpoint(run / name) for run in (one, two))
        for key in ours_:
            np.testing.assert_allclose(ours_[key], theirs_[key], rtol=1e-3, atol=1e-4)


def test_an_exhausted_step_is_repeated_with_a_smaller_micro_batch(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    fit(bundle, train_npz, val_npz, tmp_path / "whole")
    # The rehearsal is a run too; then 10 steps an epoch of one micro-batch of 4.
    broke = breaks(("train_b4", 1 + 14))
    told: list[StepDown] = []
    trainer = fit(bundle, train_npz, val_npz, tmp_path / "run", on_step_down=told.append)
    assert broke == ["train_b4"]
    assert trainer.micro_batch == 2
    assert [(s.before, s.micro_batch, s.global_step) for s in told] == [(4, 2, 13)]
    assert_same_trajectory(tmp_path / "whole", tmp_path / "run")


def test_in_the_middle_of_a_step_all_its_micro_batches_are_repeated(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    fit(bundle, train_npz, val_npz, tmp_path / "whole", micro_batch=2)
    breaks(("train_b2", 1 + 6))  # the second of two micro-batches of step 3
    trainer = fit(bundle, train_npz, val_npz, tmp_path / "run", micro_batch=2)
    assert trainer.micro_batch == 1
    assert_same_trajectory(tmp_path / "whole", tmp_path / "run")


def test_down_to_the_smallest_and_out_with_everything_saved(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    fit(bundle, train_npz, val_npz, tmp_path / "whole")
    broke = breaks(("train_b4", 5), ("train_b2", 4), ("train_b1", 13))
    out = tmp_path / "run"
    with pytest.raises(BudgetError, match="smaller --micro-batch") as caught:
        fit(bundle, train_npz, val_npz, out)
    assert broke == ["train_b4", "train_b2", "train_b1"]
    assert caught.value.exit_code == 3
    # 3 steps by 4; one by 2; its second broke; then rehearsal and 11 micro-batches by 1.
    assert read_checkpoint(out / "last.safetensors")[0].global_step == 3 + 1 + 2
    trainer = fit(bundle, train_npz, val_npz, out, resume=True)
    assert trainer.micro_batch == 1  # it does not step up by itself
    assert_same_trajectory(tmp_path / "whole", out)


def test_it_steps_up_when_the_user_says_so(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    breaks(("train_b4", 3))
    out = tmp_path / "run"
    fit(bundle, train_npz, val_npz, out, epochs=1)
    assert remembered(out) is not None
    assert fit(bundle, train_npz, val_npz, out, epochs=1, resume=True).micro_batch == 2
    trainer = fit(bundle, train_npz, val_npz, out, epochs=1, resume=True, micro_batch=4)
    assert trainer.micro_batch == 4
    assert remembered(out) is None


def test_an_update_that_failed_half_way_goes_back_to_the_last_checkpoint(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    fit(bundle, train_npz, val_npz, tmp_path / "whole")
    # An update is three runs, one for each chunk; the second of the eighth broke, having written.
    broke = breaks(("optimizer", 1 + 3 * 7 + 2))
    fit(bundle, train_npz, val_npz, tmp_path / "run", checkpoint_every_steps=3)
    assert broke == ["optimizer"]
    assert_same_trajectory(tmp_path / "whole", tmp_path / "run")


def test_a_validation_is_repeated(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    fit(bundle, train_npz, val_npz, tmp_path / "whole")
    broke = breaks(("eval", 1 + 3))
    trainer = fit(bundle, train_npz, val_npz, tmp_path / "run")
    assert (broke, trainer.micro_batch) == (["eval"], 2)
    assert_same_trajectory(tmp_path / "whole", tmp_path / "run")


def test_at_the_rehearsal_too(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    breaks(("train_b4", 1))
    assert fit(bundle, train_npz, val_npz, tmp_path / "run").micro_batch == 2


def test_without_leave_to_step_down_the_run_ends(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any
) -> None:
    breaks(("train_b4", 4))
    with pytest.raises(BudgetError):
        fit(bundle, train_npz, val_npz, tmp_path / "run", step_down=False)
    assert read_checkpoint(tmp_path / "run" / "last.safetensors")[0].global_step == 2


def test_memory_short_around_the_process(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The watch speaks while a step runs, from its own thread; once it is lower, it is content."""
    fit(bundle, train_npz, val_npz, tmp_path / "whole")
    trainer = Trainer(bundle, seed=3)
    shortages = [Shortage("MemAvailable", 10 * MIB, 64 * MIB)]
    due = [False]

    def shortage() -> Shortage | None:
        return shortages.pop() if due[0] and shortages else None

    def progress(now: Progress) -> None:
        if (now.phase, now.epoch, now.step) == ("train", 2, 5) and shortages:
            due[0] = True
            while shortages:
                pass  # the other thread looks every 0.2 s

    assert trainer._guard._headroom is not None
    monkeypatch.setattr(trainer._guard._headroom, "shortage", shortage)
    summary = trainer.fit(
        train_npz, val=val_npz, out=tmp_path / "run", on_progress=progress, **OPTIONS
    )
    (step_down,) = summary.step_downs
    assert step_down.before == 4
    assert "10.0 MiB left by MemAvailable" in step_down.reason
    assert summary.micro_batch == step_down.micro_batch < 4
    assert_same_trajectory(tmp_path / "whole", tmp_path / "run")


def test_a_loss_that_may_compare_samples_does_not_step_down(tmp_path: Path) -> None:
    own = write_toy_bundle(tmp_path / "own", loss="output", micro_batches=(1, 2))
    manifest = Bundle.open(own).manifest
    needed = requirement(manifest, micro_batch=2)
    assert smaller(manifest, needed, 1, DEFAULT_SETTING) is None


def test_the_largest_that_gives_back_enough_is_chosen(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    totals = {n: requirement(manifest, micro_batch=n).total_bytes for n in (1, 2, 4)}
    needed = requirement(manifest, micro_batch=4)
    for missing, expected in ((0, 2), (totals[4] - totals[2], 2), (totals[4] - totals[2] + 1, 1)):
        found = smaller(manifest, needed, missing, DEFAULT_SETTING)
        assert found is not None and found.micro_batch == expected
    found = smaller(manifest, needed, 10**9, DEFAULT_SETTING)
    assert found is not None and found.micro_batch == 1  # not enough, but what there is
    assert smaller(manifest, requirement(manifest, micro_batch=1), 0, DEFAULT_SETTING) is None


def test_a_damaged_memory_of_it_is_named(tmp_path: Path) -> None:
    remember(tmp_path, StepDown.now(4, 2, 17, "because"))
    found = remembered(tmp_path)
    assert found is not None and (found.micro_batch, found.before) == (2, 4)
    (tmp_path / "step_down.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step_down\.json"):
        remembered(tmp_path)


def test_a_runtime_that_keeps_its_arena_leaves_the_folder_ready(
    bundle: Path, train_npz: Path, val_npz: Path, tmp_path: Path, breaks: Any, monkeypatch: Any
) -> None:
    """Before onnxruntime 1.23: another process goes on, which the command line starts."""
    fit(bundle, train_npz, val_npz, tmp_path / "whole")
    sessions = sys.modules["s2a_edge.run.sessions"]
    monkeypatch.setattr(sessions, "can_replace_arena", lambda: False)
    breaks(("train_b4", 9))
    trainer = Trainer(bundle, seed=3)
    out = tmp_path / "run"
    with pytest.raises(BudgetError):
        trainer.fit(train_npz, val=val_npz, out=out, **OPTIONS)
    assert trainer.continues_with is not None and trainer.continues_with.micro_batch == 2
    assert fit(bundle, train_npz, val_npz, out, resume=True).micro_batch == 2
    assert_same_trajectory(tmp_path / "whole", out)
