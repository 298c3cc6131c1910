"""What can go wrong while training: each is one clear error, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.report import Progress
from s2a_edge.run.run_folder import METRICS_NAME
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import (
    BudgetError,
    DataError,
    NonFiniteLossError,
    S2AError,
    StorageError,
)
from tests.run.toy_bundle import toy_samples, write_samples, write_toy_bundle
from tests.run.toy_graphs import ToySize

# The parameters and optimizer state are a megabyte, so that writing them takes a while.
WIDE = ToySize(hidden=20_000)
OPTIONS = {"epochs": 3, "lr": 0.01, "checkpoint_every_steps": 1}

# Trains as the command line does; what it is told to break breaks on the way.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path

bundle, data, out, options, kill_at_fsync, pause_s = sys.argv[1:]
real_fsync, calls = os.fsync, [0]

def counted_fsync(descriptor):
    calls[0] += 1
    if calls[0] == int(kill_at_fsync):
        os.kill(os.getpid(), signal.SIGKILL)
    real_fsync(descriptor)

os.fsync = counted_fsync
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import S2AError

def pause(now):
    time.sleep(float(pause_s))

try:
    trainer = Trainer(bundle, seed=3)
    summary = trainer.fit(data, out=out, on_progress=pause, **json.loads(options))
    print("stopped by", summary.stopped_by)
except S2AError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("wide") / "bundle", size=WIDE)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("data") / "train.npz", 38)


@contextmanager
def child(
    bundle: Path,
    data: Path,
    out: Path,
    *,
    kill_at_fsync: int = 0,
    pause_s: float = 0.0,
    **options: Any,
) -> Iterator[subprocess.Popen[str]]:
    """A process that trains; gone when the block ends."""
    arguments = [str(bundle), str(data), str(out), json.dumps({**OPTIONS, **options})]
    training = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments, str(kill_at_fsync), str(pause_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with training:
        try:
            yield training
        finally:
            training.kill()


def step_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / METRICS_NAME).read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def uninterrupted(
    wide: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], dict[str, bytes]]:
    """Losses and final tensors of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    Trainer(wide, seed=3).fit(samples, out=out, **OPTIONS)  # type: ignore[arg-type]  # a dict of several types
    _, tensors = read_checkpoint(out / "last.safetensors")
    return step_losses(out), {name: values.tobytes() for name, values in tensors.items()}


def assert_finishes_like(
    uninterrupted: tuple[list[float], dict[str, bytes]], bundle: Path, data: Path, out: Path
) -> None:
    Trainer(bundle, seed=3).fit(data, out=out, resume=True, **OPTIONS)  # type: ignore[arg-type]  # a dict of several types
    losses, tensors = uninterrupted
    assert step_losses(out) == losses
    _, now = read_checkpoint(out / "last.safetensors")
    assert {name: values.tobytes() for name, values in now.items()} == tensors


# Per save: the metrics, the new file, the folder. These are in the first
# and in a late one, before and after the file has its name.
@pytest.mark.parametrize("call", [5, 6, 7, 32])
def test_kill_9_while_saving_leaves_a_checkpoint_that_resumes(
    wide: Path, samples: Path, tmp_path: Path, uninterrupted: Any, call: int
) -> None:
    out = tmp_path / "run"
    with child(wide, samples, out, kill_at_fsync=call) as killed:
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    read_checkpoint(out / "last.safetensors")
    assert_finishes_like(uninterrupted, wide, samples, out)


def test_kill_9_at_any_time_and_again_leaves_a_checkpoint_that_resumes(
    wide: Path, samples: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    out = tmp_path / "run"
    last = out / "last.safetensors"

    def steps_done() -> int:
        return read_checkpoint(last)[0].global_step if last.exists() else 0

    for delay_s in (0.0, 0.013):
        before = steps_done()
        with child(wide, samples, out, resume=out.exists(), pause_s=0.002) as training:
            wait_for(lambda before=before: steps_done() > before, training)
            time.sleep(delay_s)
            training.kill()
            training.communicate()
        assert before < steps_done() < 30
    assert_finishes_like(uninterrupted, wide, samples, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_last_complete_step_and_leaves(
    wide: Path, samples: Path, tmp_path: Path, uninterrupted: Any, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    with child(wide, samples, out, pause_s=0.02, checkpoint_every_steps=1000) as training:
        wait_for(lambda: (out / "last.safetensors").exists(), training)
        training.send_signal(number)
        said, errors = training.communicate(timeout=60)
    assert (training.returncode, errors) == (0, "")
    assert said == f"stopped by {number.name}\n"
    assert_finishes_like(uninterrupted, wide, samples, out)


def wait_for(condition: Any, training: subprocess.Popen[str], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert training.poll() is None, training.communicate()
        assert time.monotonic() < deadline, "the child did not get there"
        time.sleep(0.001)


def disk_full_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    real_fsync, made = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        made[0] += 1
        if made[0] > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("calls", [5, 13])
def test_a_full_disk_is_an_error_and_the_checkpoint_before_is_intact(
    wide: Path,
    samples: Path,
    tmp_path: Path,
    uninterrupted: Any,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        disk_full_after(patch, calls)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            Trainer(wide, seed=3).fit(samples, out=out, **OPTIONS)  # type: ignore[arg-type]  # a dict of several types
    assert not list(out.glob(".last*"))  # no half is left
    read_checkpoint(out / "last.safetensors")
    assert_finishes_like(uninterrupted, wide, samples, out)


def test_a_folder_that_cannot_be_written_is_an_error_before_training(
    wide: Path, samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError):
        Trainer(wide).fit(samples, epochs=1, lr=0.1, out=tmp_path / "file" / "run")


def test_a_budget_that_is_too_small_is_exit_3_before_anything_happens(
    wide: Path, samples: Path, tmp_path: Path
) -> None:
    script = CHILD.replace("Trainer(bundle, seed=3)", "Trainer(bundle, budget_bytes=40 << 20)")
    arguments = [str(wide), str(samples), str(tmp_path / "run"), json.dumps(OPTIONS), "0", "0"]
    run = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.count("\n") == 1
    assert "at least" in done.stdout
    assert "a budget of 40.0 MiB" in done.stdout
    assert not (tmp_path / "run").exists()


def test_memory_above_the_budget_while_training_ends_the_run_saved(
    wide: Path, samples: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    """Another part of the process grows: the guard sees it wherever it comes from."""
    out = tmp_path / "run"
    ballast: list[np.ndarray[Any, Any]] = []

    def grow(now: Progress) -> None:
        if (now.phase, now.epoch, now.step) == ("train", 2, 4) and not ballast:
            ballast.append(np.ones(192 << 20, np.uint8))

    trainer = Trainer(wide, seed=3)
    needed_bytes = trainer.requirement.total_bytes
    del trainer
    trainer = Trainer(wide, seed=3, budget_bytes=needed_bytes + (64 << 20))
    with pytest.raises(BudgetError, match=r"epoch 2, step \d+: .*expected at most") as caught:
        options = {**OPTIONS, "step_down": False}
        trainer.fit(samples, out=out, on_progress=grow, **options)  # type: ignore[arg-type]  # a dict of several types
    assert caught.value.missing_bytes > 0
    ballast.clear()
    # The same trainer can go on once the memory is free again.
    x, labels = toy_samples(4)
    trainer.step({"x": x}, labels, lr=0.0)
    info, _ = read_checkpoint(out / "last.safetensors")
    assert info.global_step >= 13
    assert_finishes_like(uninterrupted, wide, samples, out)


def test_an_exhausted_arena_is_found_by_the_rehearsal(samples: Path, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", size=ToySize(hidden=400_000))  # plans 8 MiB for it
    with pytest.raises(BudgetError, match="node 'toy/"):
        Trainer(bundle).fit(samples, epochs=1, lr=0.1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_an_exhausted_arena_in_the_middle_of_a_run_is_saved_and_named(
    wide: Path,
    samples: Path,
    tmp_path: Path,
    uninterrupted: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without stepping down, of which tests/run/test_step_down.py is about."""
    out = tmp_path / "run"
    trainer = Trainer(wide, seed=3)
    graph = trainer._sessions.train._train
    real_run, runs = graph.run, [0]

    def run() -> None:
        runs[0] += 1
        if runs[0] == 28:  # one rehearsal, then two micro-batches a step
            raise BudgetError(
                where="train_b2: node 'x'", expected="a", got="b", todo="c", missing_bytes=5
            )
        real_run()

    monkeypatch.setattr(graph, "run", run)
    with pytest.raises(BudgetError, match=r"^epoch 2, step 4: train_b2: node 'x'") as caught:
        options = {**OPTIONS, "checkpoint_every_steps": 1000, "step_down": False}
        trainer.fit(samples, out=out, **options)  # type: ignore[arg-type]  # a dict of several types
    assert caught.value.missing_bytes == 5
    info, _ = read_checkpoint(out / "last.safetensors")
    assert (info.epoch, info.step) == (1, 3)
    assert_finishes_like(uninterrupted, wide, samples, out)


def test_python_running_out_of_memory_is_a_budget_error_too(
    wide: Path, samples: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    """As an image does that is decoded under an address-space limit."""

    def exhaust(now: Progress) -> None:
        if (now.phase, now.epoch, now.step) == ("train", 1, 5):
            raise MemoryError

    out = tmp_path / "run"
    with pytest.raises(BudgetError, match="epoch 1, step 6"):
        options = {**OPTIONS, "step_down": False}
        Trainer(wide, seed=3).fit(samples, out=out, on_progress=exhaust, **options)  # type: ignore[arg-type]  # a dict of several types
    assert_finishes_like(uninterrupted, wide, samples, out)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(
    wide: Path, tmp_path: Path
) -> None:
    x, labels = toy_samples(38)
    np.savez(tmp_path / "good.npz", x=x, labels=labels)
    out = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step [2-9]: expected a finite"):
        Trainer(wide).fit(tmp_path / "good.npz", epochs=1, lr=1e30, out=out)
    info, tensors = read_checkpoint(out / "last.safetensors")
    assert info.global_step == 0
    assert all(np.isfinite(values).all() for values in tensors.values())


def test_a_sample_that_cannot_be_read_ends_the_run_saved(wide: Path, tmp_path: Path) -> None:
    """The data goes away under a running training."""
    path, out = write_samples(tmp_path / "train.npz", 38), tmp_path / "run"

    def cut(now: Progress) -> None:
        if (now.phase, now.step) == ("train", 4):
            os.truncate(path, 200)

    with pytest.raises(S2AError) as caught:
        Trainer(wide).fit(path, epochs=1, lr=0.1, out=out, on_progress=cut)
    assert isinstance(caught.value, DataError)
    assert read_checkpoint(out / "last.safetensors")[0].global_step >= 4
