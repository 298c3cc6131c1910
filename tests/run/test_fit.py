from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.engine import Engine
from s2a_edge.run.graph import Graph
from s2a_edge.run.report import Progress, RunSummary
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import CheckpointError, DataError, UsageError
from s2a_edge.spec.requirement import LineKind
from tests.run.toy_bundle import write_samples, write_toy_bundle

# What decides the bits of a run; times and memory differ between two runs of the same.
EXACT = ("kind", "epoch", "step", "global_step", "loss", "accuracy", "lr", "grad_norm", "val_loss")
Fit = Callable[..., RunSummary]


@pytest.fixture
def fit(toy: Path, train_npz: Path, val_npz: Path, tmp_path: Path) -> Fit:
    """Runs ``Trainer.fit`` of three epochs with a seed; keywords override."""

    def run(*, micro_batch: int | None = None, seed: int = 3, **options: Any) -> RunSummary:
        trainer = Trainer(options.pop("bundle", toy), micro_batch=micro_batch, seed=seed)
        settings = {
            "data": train_npz,
            "val": val_npz,
            "epochs": 3,
            "lr": 0.05,
            "warmup_epochs": 0.5,
            "label_smoothing": 0.1,
            "out": tmp_path / "run",
        }
        return trainer.fit(**{**settings, **options})

    return run


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in EXACT if key in line} for line in lines]


def signal_at(epoch: int, step: int, phase: str = "train") -> Callable[[Progress], None]:
    """A progress callback that sends this process SIGTERM at one point of the run."""

    def on_progress(now: Progress) -> None:
        if (now.phase, now.epoch, now.step) == (phase, epoch, step):
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


def assert_same_run(one: Path, two: Path) -> None:
    assert records(one) == records(two)
    for name in ("last.safetensors", "best.safetensors"):
        (info_1, tensors_1), (info_2, tensors_2) = (read_checkpoint(r / name) for r in (one, two))
        assert (info_1.history, info_1.best) == (info_2.history, info_2.best)
        assert {k: v.tobytes() for k, v in tensors_1.items()} == {
            k: v.tobytes() for k, v in tensors_2.items()
        }


def test_training_lowers_the_loss_and_keeps_everything(fit: Fit, toy: Path) -> None:
    summary = fit(epochs=8, label_smoothing=0.0)
    losses = [record.loss for record in summary.history]
    assert losses[-1] < 0.6 * losses[0]
    assert (summary.epochs, summary.steps, summary.stopped_by) == (8, 80, None)
    best = max(summary.history, key=lambda r: (r.val_metrics["top1"], -(r.val_loss or 0)))
    assert (summary.best_epoch, summary.best_metric) == (best.epoch, "top1")
    names = sorted(p.name for p in summary.out.iterdir())
    assert names == ["best.safetensors", "last.safetensors", "metrics.jsonl", "run.json"]
    info, _ = read_checkpoint(summary.out / "best.safetensors")
    assert info.epoch == best.epoch
    run = json.loads((summary.out / "run.json").read_text())
    assert run["bundle"] == str(toy.resolve())
    assert run["settings"]["epochs"] == 8


def test_the_same_run_twice_is_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    fit(out=tmp_path / "one")
    fit(out=tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    fit(out=tmp_path / "other", seed=4)
    assert records(tmp_path / "other") != records(tmp_path / "one")


@pytest.mark.parametrize(
    ("epoch", "step", "phase"),
    [
        (1, 1, "train"),  # before the first save but that of the start
        (2, 4, "train"),
        (2, 10, "train"),  # after the last step, before validation
        (2, 3, "validate"),
        (3, 10, "train"),
    ],
)
def test_a_run_that_was_stopped_and_resumed_is_the_same_bits(
    fit: Fit, tmp_path: Path, epoch: int, step: int, phase: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(out=whole)
    stopped = fit(out=parts, on_progress=signal_at(epoch, step, phase))
    assert stopped.stopped_by == "SIGTERM"
    assert stopped.epochs == epoch - 1
    finished = fit(out=parts, resume=True)
    assert (finished.epochs, finished.stopped_by) == (3, None)
    assert_same_run(whole, parts)


def test_resuming_from_a_checkpoint_between_epochs_repeats_what_came_after(
    fit: Fit, tmp_path: Path
) -> None:
    """As after a power cut: metrics are ahead of the last checkpoint."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(out=whole)
    copies: list[Path] = []

    def keep_copies(now: Progress) -> None:
        if now.phase == "train" and now.epoch == 2 and now.step == 7:
            copies.append(shutil.copytree(parts, tmp_path / f"copy{len(copies)}"))

    fit(out=parts, on_progress=keep_copies, checkpoint_every_steps=3)
    assert len(copies) == 2  # two micro-batches
    fit(out=copies[-1], resume=True, checkpoint_every_steps=3)
    assert_same_run(whole, copies[-1])


def test_a_run_can_go_on_with_another_micro_batch(fit: Fit, tmp_path: Path) -> None:
    """For when memory got tight: the mathematics is the same, to float32 accuracy."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(out=whole, micro_batch=2)
    fit(out=parts, micro_batch=2, on_progress=signal_at(2, 5))
    fit(out=parts, micro_batch=1, resume=True)
    (_, one), (_, two) = (read_checkpoint(r / "last.safetensors") for r in (whole, parts))
    for name in one:
        # 20 steps of Adam, whose direction is the gradient's over its own size.
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_a_finished_run_that_is_resumed_does_nothing(fit: Fit, tmp_path: Path) -> None:
    first = fit()
    before = records(tmp_path / "run")
    again = fit(resume=True)
    assert again.history == first.history
    assert records(tmp_path / "run") == before


def test_an_empty_folder_is_resumed_from_the_start(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()  # as a unit that is always started with --resume finds it
    assert fit(resume=True).epochs == 3
    with pytest.raises(CheckpointError, match="no such folder"):
        fit(out=tmp_path / "typo", resume=True)


def test_a_run_is_not_overwritten(fit: Fit) -> None:
    fit()
    with pytest.raises(UsageError, match="continue it with --resume"):
        fit()


def test_what_differs_from_the_interrupted_run_is_named(
    fit: Fit, tmp_path: Path, train_npz: Path
) -> None:
    fit(on_progress=signal_at(2, 4))
    with pytest.raises(CheckpointError, match=r"lr 0\.01 \(was 0.05\)"):
        fit(resume=True, lr=0.01)
    with pytest.raises(CheckpointError, match=r"epochs 4 \(was 3\)"):
        fit(resume=True, epochs=4)
    fewer = write_samples(tmp_path / "fewer.npz", 30)
    with pytest.raises(CheckpointError, match=r"data of 30 samples \(was 38\)"):
        fit(resume=True, data=fewer)
    other = write_toy_bundle(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"bundle \w{12} \(was \w{12}\)"):
        fit(resume=True, bundle=other)
    assert fit(resume=True).epochs == 3  # nothing was damaged


def test_progress_tells_where_the_run_stands(fit: Fit) -> None:
    told: list[Progress] = []
    fit(on_progress=told.append)
    assert told[0].phase == "rehearse"
    training = [now for now in told if now.phase == "train"]
    assert [(now.epoch, now.step) for now in training][-1] == (3, 10)
    assert all(now.steps == 10 and now.epochs == 3 for now in training)
    assert training[0].loss is None  # no complete step yet
    assert training[-1].loss is not None
    assert training[-1].images_s is not None
    assert all(0 < now.memory_bytes <= now.peak_bytes for now in told)
    assert {now.step for now in told if now.phase == "validate"} == {1, 2, 3, 4, 5, 6}


def test_the_rehearsal_leaves_parameters_and_optimizer_as_they_are(
    toy: Path, train_npz: Path, tmp_path: Path
) -> None:
    trainer = Trainer(toy)
    states = []

    def on_progress(now: Progress) -> None:
        states.append(trainer.state.snapshot())

    start = trainer.state.snapshot()
    trainer.fit(train_npz, epochs=1, lr=0.05, out=tmp_path / "run", on_progress=on_progress)
    for state in states[:2]:  # before the rehearsal, after the first micro-batch of two
        assert all(np.array_equal(state[key], start[key]) for key in start)
    assert any(not np.array_equal(states[-1][key], start[key]) for key in start)


def test_without_validation_there_is_no_best(fit: Fit, tmp_path: Path) -> None:
    summary = fit(val=None)
    assert summary.best_epoch is None
    assert summary.best_metric is None
    assert all((r.val_loss, r.val_metrics) == (None, {}) for r in summary.history)
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_sgd_trains_too(fit: Fit, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "sgd", optimizer="sgd")
    summary = fit(bundle=bundle, label_smoothing=0.0)
    assert summary.history[-1].loss < summary.history[0].loss
    _, tensors = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"param", "m"}


def test_labels_that_the_bundle_lacks_are_refused_before_anything_is_made(
    fit: Fit, tmp_path: Path
) -> None:
    data = tmp_path / "bad.npz"
    np.savez(data, x=np.zeros((4, 6), np.float32), labels=np.array([0, 1, 2, 3]))
    with pytest.raises(DataError):
        fit(data=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0.0}, {"warmup_epochs": 9}, {"weight_decay": -1}]
)
def test_numbers_out_of_range_are_refused_before_anything_is_made(
    fit: Fit, tmp_path: Path, wrong: dict[str, float]
) -> None:
    with pytest.raises(UsageError):
        fit(**wrong)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_without_validation_its_graph_is_neither_loaded_nor_counted(
    toy: Path, train_npz: Path, val_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = Engine.load

    def noted(engine: Engine, path: Path) -> Graph:
        loaded.append(path.name)
        return load(engine, path)

    monkeypatch.setattr(Engine, "load", noted)
    whole, lean = (Trainer(toy, seed=3, evaluation=evaluation) for evaluation in (True, False))
    assert lean.requirement.of_kind(LineKind.SESSIONS) == 2 * 2 * 2**20
    assert whole.requirement.of_kind(LineKind.SESSIONS) == 3 * 2 * 2**20
    with pytest.raises(UsageError, match="evaluation=False"):
        lean.fit(train_npz, val=val_npz, epochs=1, lr=0.05, out=tmp_path / "refused")
    with pytest.raises(UsageError, match="evaluation=False"):
        lean.evaluate(val_npz)
    loaded.clear()
    lean = Trainer(toy, seed=3, evaluation=False)
    lean.fit(train_npz, epochs=2, lr=0.05, out=tmp_path / "lean")
    assert loaded == ["optimizer.onnx", "train_b2.onnx"]
    whole.fit(train_npz, epochs=2, lr=0.05, out=tmp_path / "whole")
    assert records(tmp_path / "lean") == records(tmp_path / "whole")
