"""``train``, ``eval``, ``export`` as a user runs them, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.run.toy_bundle import toy_samples, write_toy_bundle


def _s2a(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2a_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _json(*arguments: object) -> dict[str, Any]:
    done = _s2a(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, data, and a run of two epochs."""
    folder = tmp_path_factory.mktemp("place")
    write_toy_bundle(folder / "toy")
    for name, seed in (("train", 1), ("val", 2)):
        x, labels = toy_samples(48, seed=seed)
        np.savez(folder / f"{name}.npz", x=x, labels=labels)
    done = _train(folder, "run", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    return folder


def _train(folder: Path, run: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    data = ("--data", folder / "train.npz", "--val", folder / "val.npz")
    return _s2a("train", folder / "toy", *data, "--out", folder / run, "--lr", 0.05, *arguments)


def test_train_logs_each_epoch_and_shows_the_history(place: Path) -> None:
    done = _train(place, "logged", "--epochs", 2, "--budget", "2GiB")
    assert done.returncode == 0, done.stderr
    assert "rehearsing" in done.stderr
    assert "training 2/2  loss " in done.stderr
    assert " of 2.00 GiB" in done.stderr
    assert "2 epochs, 24 steps of micro-batch 2" in done.stdout
    assert (place / "logged" / "last.safetensors").is_file()


def test_quiet_train_says_nothing(place: Path) -> None:
    done = _train(place, "quiet", "--epochs", 1, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_flags_reach_the_run(place: Path) -> None:
    flags = {
        "--weight-decay": 0.1,
        "--warmup": 0.5,
        "--label-smoothing": 0.1,
        "--max-norm": 2.0,
        "--momentum": 0.8,
        "--seed": 7,
    }
    arguments = [part for pair in flags.items() for part in pair]
    done = _train(place, "flags", "--epochs", 1, "--no-augment", *arguments)
    assert done.returncode == 0, done.stderr
    settings = json.loads((place / "flags" / "run.json").read_text())["settings"]
    optimizer = settings["optimizer"]
    assert (optimizer["weight_decay"], optimizer["max_norm"]) == (0.1, 2.0)
    assert optimizer["momentum"] == 0.8
    assert (settings["lr"], settings["warmup_epochs"], settings["seed"]) == (0.05, 0.5, 7)
    assert (settings["label_smoothing"], settings["augment"]) == (0.1, False)


def test_a_run_is_not_overwritten(place: Path) -> None:
    done = _train(place, "run", "--epochs", 2)
    assert done.returncode == 2
    assert "continue it with --resume" in done.stderr


def test_resume_of_a_finished_run_keeps_its_history(place: Path) -> None:
    done = _train(place, "run", "--epochs", 2, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["history"]) == 2


def test_budget_that_is_too_small_is_3(place: Path) -> None:
    done = _train(place, "small", "--epochs", 1, "--budget", "10MiB", "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)
    assert error["error"] == "BudgetError"
    assert error["missing_bytes"] > 0
    assert done.stderr.count("\n") == 1
    assert not (place / "small").exists()


def test_interrupted_it_saves_and_exits_as_a_shell_expects(place: Path) -> None:
    data = ("--data", place / "train.npz", "--out", place / "interrupted", "--epochs", 100_000)
    command = [sys.executable, "-m", "s2a_edge", "train", place / "toy", *data]
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as training:
        assert training.stderr is not None
        while not training.stderr.readline().startswith("training 2/"):
            assert training.poll() is None
        training.send_signal(signal.SIGINT)
        shown, _ = training.communicate(timeout=60)
    assert training.returncode == 128 + signal.SIGINT
    assert "stopped by SIGINT; continue with --resume" in shown
    assert (place / "interrupted" / "last.safetensors").is_file()


def test_eval_of_a_run_and_of_the_bundle(place: Path) -> None:
    tuned = _json("eval", place / "run", "--data", place / "val.npz")
    packed = _json("eval", place / "toy", "--data", place / "val.npz")
    assert tuned["n"] == packed["n"] == 48
    assert tuned["loss"] < packed["loss"]
    assert sum(row["samples"] for row in tuned["per_class"]) == 48
    table = _s2a("eval", place / "run", "--data", place / "val.npz", "--checkpoint", "last")
    assert "top-1" in table.stdout
    assert "class0" in table.stdout


def test_export_predicts_as_eval_does(place: Path) -> None:
    out = place / "tuned.onnx"
    written = _json("export", place / "run", "--out", out)
    assert written["size_bytes"] == out.stat().st_size
    x, labels = toy_samples(48, seed=2)
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    hits = np.array([session.run(None, {"x": row[None]})[0].argmax() for row in x]) == labels
    evaluated = _json("eval", place / "run", "--data", place / "val.npz")
    assert float(hits.mean()) == evaluated["top1"]


def test_export_of_no_run(tmp_path: Path) -> None:
    done = _s2a("export", tmp_path, "--out", tmp_path / "x.onnx")
    assert done.returncode == 1
    assert "expected a run folder" in done.stderr


def test_a_run_that_another_process_must_continue_is_resumed_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with onnxruntime before 1.23; the process image is replaced."""
    site = place / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BREAKS_THE_FIRST_PROCESS)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{os.environ.get('PYTHONPATH', '')}")
    done = _train(place, "again", "--epochs", 1, "--micro-batch", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert "on with micro-batch 1 instead of 2" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["micro_batch"], summary["epochs"]) == (1, 1)


BREAKS_THE_FIRST_PROCESS = """
import os, sys

if "train" in sys.argv and "--resume" not in sys.argv:
    import s2a_edge.run.sessions as sessions
    from s2a_edge.run.step import TrainStep
    from s2a_edge.spec.errors import BudgetError

    sessions.can_replace_arena = lambda: False
    calls, real = [0], TrainStep.update

    def update(self, *arguments, **named):
        calls[0] += 1
        if calls[0] == 3:
            raise BudgetError(where="node", expected="a", got="b", todo="c", missing_bytes=1)
        return real(self, *arguments, **named)

    TrainStep.update = update
"""
