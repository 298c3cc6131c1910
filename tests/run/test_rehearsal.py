from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run import rehearsal
from s2a_edge.run.engine import Engine
from s2a_edge.spec.bundle import Bundle
from tests.run.toy_bundle import ARENA_BYTES, toy_samples, write_toy_bundle
from tests.run.toy_graphs import TRAINABLES, ToySize


def rehearse(request: object) -> tuple[int, dict[str, Any]]:
    text = request if isinstance(request, str) else json.dumps(request)
    run = [sys.executable, "-m", "s2a_edge.run.rehearsal"]
    done = subprocess.run(run, input=text, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def test_outputs_are_those_of_one_run_however_often_it_ran(toy: Path, tmp_path: Path) -> None:
    x, labels = toy_samples(2)
    size = ToySize()
    inputs = {f"param.{n}": np.full(size.shape(n), 0.1, np.float32) for n in TRAINABLES}
    inputs |= {f"acc.{n}": np.zeros(size.shape(n), np.float32) for n in TRAINABLES}
    inputs |= {"x": x, "target": np.eye(3, dtype=np.float32)[labels]}
    inputs["weight"] = np.full(2, 0.5, np.float32)
    arrays: dict[str, Any] = inputs
    np.savez(tmp_path / "in.npz", **arrays)
    made = {}
    for repeat in (1, 3):
        request = {
            "graph": str(toy / "train_b2.onnx"),
            "inputs": str(tmp_path / "in.npz"),
            "arena_bytes": ARENA_BYTES,
            "threads": 1,
            "repeat": repeat,
            "outputs": str(tmp_path / f"out{repeat}.npz"),
        }
        status, answer = rehearse(request)
        assert (status, answer["ok"], len(answer["step_ms"])) == (0, True, repeat)
        assert len(answer["cpu_ms"]) == repeat and min(answer["cpu_ms"]) >= 0
        with np.load(tmp_path / f"out{repeat}.npz") as outputs:
            made[repeat] = {name: outputs[name] for name in outputs.files}
    assert set(made[1]) == {"loss", "logits", *(f"acc_out.{n}" for n in TRAINABLES)}
    assert np.any(made[1]["acc_out.head.bias"] != 0)
    assert all(np.array_equal(made[1][name], made[3][name]) for name in made[1])


def test_the_parts_of_memory_add_up(tmp_path: Path) -> None:
    """A graph whose arena, bound tensors and weights are megabytes each."""
    size = ToySize(hidden=400_000)
    bundle = write_toy_bundle(tmp_path / "wide", size=size, micro_batches=(2,))
    request = {"graph": str(bundle / "train_b2.onnx"), "inputs": {"random": 0}, "repeat": 2}
    status, answer = rehearse({**request, "arena_bytes": 64 * 2**20})
    assert (status, answer["ok"]) == (0, True)
    weights_bytes = (bundle / "weights.bin").stat().st_size
    assert answer["weights_bytes"] == pytest.approx(weights_bytes, abs=4096)
    trained = 4 * sum(int(np.prod(size.shape(n))) for n in TRAINABLES)
    assert answer["bound_bytes"] == pytest.approx(2 * trained, abs=200)
    # Peak = base + session + bound + what the arena needed; the arena needed at least the
    # hidden values before and after the ReLU, 400,000 x 2 x 4 bytes each.
    arena_bytes = answer["process_peak_bytes"] - sum(
        answer[part] for part in ("runtime_base_bytes", "session_bytes", "bound_bytes")
    )
    assert 2 * 3_200_000 < arena_bytes < 64 * 2**20
    assert answer["vm_hwm_bytes"] == answer["process_peak_bytes"] + answer["weights_bytes"]


def test_a_limit_that_is_too_small_is_an_answer(tmp_path: Path) -> None:
    size = ToySize(features=1, hidden=400_000)  # hidden values are 3.2 MB each
    bundle = write_toy_bundle(tmp_path / "wide", size=size, micro_batches=(2,))
    request = {"graph": str(bundle / "train_b2.onnx"), "inputs": {"random": 0}}
    status, answer = rehearse({**request, "arena_bytes": 4 * 2**20})
    assert (status, answer["ok"], answer["out_of_memory"]) == (0, False, True)
    assert answer["failed_node"].startswith("toy/")


@pytest.mark.parametrize("name", ["eval.onnx", "optimizer.onnx"])
def test_every_graph_can_be_rehearsed_on_random_inputs(toy: Path, name: str) -> None:
    request = {"graph": str(toy / name), "inputs": {"random": 1}, "arena_bytes": None}
    status, answer = rehearse(request)
    assert (status, answer["ok"]) == (0, True)


def test_a_graph_that_cannot_be_loaded_is_an_answer(tmp_path: Path) -> None:
    request = {"graph": str(tmp_path / "no.onnx"), "inputs": {"random": 0}, "arena_bytes": None}
    status, answer = rehearse(request)
    assert (status, answer["ok"], answer["out_of_memory"]) == (0, False, False)
    assert "no.onnx" in answer["error"]


@pytest.mark.parametrize("what", ["missing", "shape", "file"])
def test_inputs_that_do_not_fit_the_graph_are_an_answer(
    toy: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "in.npz"
    if what == "shape":
        np.savez(path, x=np.zeros((3, 6), np.float32))
    elif what == "missing":
        np.savez(path, y=np.zeros(1))
    else:
        path.write_bytes(b"PK")
    request = {"graph": str(toy / "eval.onnx"), "inputs": str(path), "arena_bytes": None}
    status, answer = rehearse(request)
    assert (status, answer["ok"], answer["out_of_memory"]) == (0, False, False)
    assert str(path) in answer["error"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"graph": "x"}', '{"wrong": 1}'])
def test_a_request_that_cannot_be_read_is_exit_2(text: str) -> None:
    status, answer = rehearse(text)
    assert (status, answer["ok"], answer["error"]) == (2, False, "UsageError")


def test_weights_can_be_handed_over_as_in_training(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any] | None] = []

    class Spy(Engine):
        def __init__(self, **settings: Any) -> None:
            given.append(settings["weights"])
            super().__init__(**settings)

    monkeypatch.setattr(rehearsal, "Engine", Spy)
    request = {"graph": str(toy / "train_b2.onnx"), "inputs": {"random": 0}, "threads": 1}
    for more in ({}, {"own_weights": False}):
        assert rehearsal.rehearse(rehearsal.read_request(json.dumps({**request, **more})))["ok"]
    own, handed = given
    assert own is None
    assert handed is not None and set(handed) == set(Bundle.open(toy).weights()) != set()
