"""The update over chunks: all or nothing, whatever arrives in between."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.run.engine import Engine
from s2a_edge.run.graph import Graph
from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.optimizer_step import OptimizerStep, global_norm
from s2a_edge.run.state import TrainingState
from s2a_edge.run.undivided import undivided
from s2a_edge.spec.manifest import Manifest
from tests.run.toy_bundle import ARENA_BYTES, write_toy_bundle


@pytest.fixture
def state(tmp_path: Path) -> TrainingState:
    folder = write_toy_bundle(tmp_path / "b")
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    made = TrainingState(manifest.trainables, "adamw")
    for tensor in made.inputs("param", "acc").values():
        tensor.write(1)
    return made


@pytest.fixture
def update(state: TrainingState, tmp_path: Path) -> OptimizerStep:
    engine = Engine(arena_limit_bytes=ARENA_BYTES, threads=1)
    return OptimizerStep(engine, tmp_path / "b" / "optimizer.onnx", "adamw", state)


def test_the_norm_is_summed_in_float64() -> None:
    gradients = np.full(100_000, 0.1, np.float32)
    assert global_norm(gradients, 4096) == pytest.approx(0.1 * math.sqrt(100_000), rel=1e-7)


@pytest.mark.parametrize("poison", [math.nan, math.inf, 3e38])
def test_a_norm_that_is_not_finite_changes_nothing(
    state: TrainingState, update: OptimizerStep, poison: float
) -> None:
    before = state.snapshot()
    state.inputs("acc")["acc.head.weight"].write(poison)  # it stands in the last chunk
    assert not math.isfinite(update.run(0.1, 0, Hyperparameters()))
    assert all(np.array_equal(state.snapshot()[key], before[key]) for key in before)


def test_what_lies_between_trainables_stays_zero(
    state: TrainingState, update: OptimizerStep
) -> None:
    for step in range(3):
        update.run(0.1, step, Hyperparameters(weight_decay=0.1))
    for role in ("param", "m", "v"):
        whole = np.concatenate([state.chunk(first, role)[role].read()
                                for first, _ in state.layout.chunks()])
        for name, array in state.read(role).items():
            first = state.layout.first[name]
            assert array.any()
            whole[first : first + array.size] = 0
        assert not whole.any()


def test_only_what_decays_decays(state: TrainingState, update: OptimizerStep) -> None:
    state.zero_accumulators()
    update.run(0.1, 0, Hyperparameters(weight_decay=0.5))
    values = {name: set(array.ravel().tolist()) for name, array in state.read("param").items()}
    assert values["head.bias"] == values["hidden.bias"] == {1.0}
    assert list(values["head.weight"]) == pytest.approx([0.95])


def test_ctrl_c_between_two_chunks_waits_for_the_last(
    state: TrainingState, update: OptimizerStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    run = Graph.run

    def interrupted(graph: Graph, *, whole: bool = False) -> None:
        nonlocal runs
        runs += 1
        assert whole
        run(graph, whole=whole)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Graph, "run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            update.run(0.1, 0, Hyperparameters())
    finally:
        signal.signal(signal.SIGINT, before)
    assert runs == len(list(state.layout.chunks())) > 1
    assert all((array < 1).all() for array in state.read("param").values())


def test_handlers_are_as_before_and_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with undivided():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == []
        assert heard == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
