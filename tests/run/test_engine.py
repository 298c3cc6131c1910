from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.run.device_tensor import DeviceTensor
from s2a_edge.run.engine import Engine
from s2a_edge.run.graph import Graph
from s2a_edge.run.memory_check import SESSION_SLACK_BYTES
from s2a_edge.run.process_arena import can_replace_arena
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError, BundleError, InternalError
from tests.run.toy_bundle import ARENA_BYTES, toy_samples, write_toy_bundle
from tests.run.toy_graphs import ToySize

# What a Trainer gives a toy bundle: before onnxruntime 1.23 a process has one limit for good.
LIMIT_BYTES = ARENA_BYTES + SESSION_SLACK_BYTES


def bound(engine: Engine, path: Path) -> tuple[Graph, dict[str, DeviceTensor]]:
    """A graph with tensors on all ports, accumulators in place."""
    graph = engine.load(path)
    inputs = {n: engine.tensor(p.shape, p.dtype) for n, p in graph.inputs.items()}
    outputs = {
        n: inputs.get(n.replace("acc_out.", "acc.")) or engine.tensor(p.shape, p.dtype)
        for n, p in graph.outputs.items()
    }
    graph.bind(inputs, outputs)
    return graph, {**inputs, **outputs}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose training graph needs more than the toys' arena."""
    folder = tmp_path_factory.mktemp("wide") / "bundle"
    return write_toy_bundle(folder, size=ToySize(hidden=400_000))


def test_a_tensor_bound_as_input_and_output_is_updated_in_place(toy: Path) -> None:
    graph, tensors = bound(Engine(arena_limit_bytes=LIMIT_BYTES), toy / "train_b2.onnx")
    x, labels = toy_samples(2)
    tensors["x"].write(x)
    tensors["target"].write(np.eye(3)[labels])
    tensors["weight"].write(0.5)
    graph.run()
    once = tensors["acc.head.bias"].read()
    graph.run()
    assert np.any(once != 0)
    np.testing.assert_allclose(tensors["acc_out.head.bias"].read(), 2 * once, rtol=1e-6)


def test_an_exhausted_arena_is_a_budget_error_and_the_engine_stays_usable(
    toy: Path, wide: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # onnxruntime 1.19 copies weights into the arena unless they are shared.
    engine = Engine(arena_limit_bytes=LIMIT_BYTES, weights=Bundle.open(wide).weights())
    graph, _ = bound(engine, wide / "train_b2.onnx")
    for _ in range(2):
        with pytest.raises(BudgetError, match=r"train_b2: node .toy/.*bytes asked for") as caught:
            graph.run()
        assert caught.value.exit_code == 3
        assert caught.value.missing_bytes > 0
    small, _ = bound(Engine(arena_limit_bytes=LIMIT_BYTES), toy / "train_b2.onnx")
    small.run()
    assert capfd.readouterr().err == ""  # one clear line is the caller's; the runtime says none


def test_every_engine_of_a_process_with_the_same_limit_shares_the_arena(toy: Path) -> None:
    for _ in range(2):
        graph, _ = bound(Engine(arena_limit_bytes=LIMIT_BYTES), toy / "eval.onnx")
        graph.run()


def test_all_graphs_are_loaded_before_one_runs(toy: Path) -> None:
    """A session made later would void the limit of an arena that is mapped already."""
    engine = Engine(arena_limit_bytes=LIMIT_BYTES)
    graph, _ = bound(engine, toy / "eval.onnx")
    graph.run()
    with pytest.raises(InternalError, match="before the first"):
        engine.load(toy / "train_b2.onnx")


def test_the_limit_holds_for_every_session(toy: Path, wide: Path) -> None:
    engine = Engine(arena_limit_bytes=LIMIT_BYTES)
    small, _ = bound(engine, toy / "eval.onnx")
    graph, _ = bound(engine, wide / "train_b2.onnx")
    small.run()
    with pytest.raises(BudgetError):
        graph.run()


@pytest.mark.skipif(not can_replace_arena(), reason="onnxruntime before 1.23 keeps its arena")
def test_a_new_limit_holds_for_new_sessions_only(toy: Path, wide: Path) -> None:
    before, _ = bound(Engine(arena_limit_bytes=LIMIT_BYTES), toy / "train_b2.onnx")
    weights = Bundle.open(wide).weights()
    tight, _ = bound(Engine(arena_limit_bytes=2**20, weights=weights), wide / "train_b2.onnx")
    large, _ = bound(Engine(arena_limit_bytes=64 * 2**20), wide / "train_b2.onnx")
    large.run()
    before.run()
    with pytest.raises(BudgetError):
        tight.run()
    Engine(arena_limit_bytes=LIMIT_BYTES)


@pytest.mark.skipif(can_replace_arena(), reason="onnxruntime from 1.23 on can replace its arena")
def test_another_limit_in_the_same_process_is_refused() -> None:
    Engine(arena_limit_bytes=LIMIT_BYTES)
    with pytest.raises(InternalError, match="already has one"):
        Engine(arena_limit_bytes=2 * LIMIT_BYTES)


def test_without_a_limit_no_arena_is_registered(wide: Path) -> None:
    graph, _ = bound(Engine(arena_limit_bytes=None), wide / "train_b2.onnx")
    graph.run()


def test_another_thread_can_end_a_run(toy: Path) -> None:
    engine = Engine(arena_limit_bytes=LIMIT_BYTES)
    graph, _ = bound(engine, toy / "train_b2.onnx")
    reason = BudgetError(where="watcher", expected="less", got="more", todo="stop")
    thread = threading.Thread(target=engine.control.terminate, args=(reason,))
    thread.start()
    thread.join()
    with pytest.raises(BudgetError, match="watcher"):
        graph.run()
    engine.control.rearm()
    graph.run()


def test_weights_are_shared_and_not_copied(toy: Path) -> None:
    weight = np.zeros((6, 5), np.float32)
    engine = Engine(arena_limit_bytes=LIMIT_BYTES, weights={"backbone.weight": weight})
    graph, tensors = bound(engine, toy / "eval.onnx")
    tensors["x"].write(1)
    tensors["param.head.weight"].write(1)
    graph.run()
    assert np.all(tensors["logits"].read() == 0)
    weight[...] = 2  # the graph reads this very memory
    graph.run()
    np.testing.assert_allclose(tensors["logits"].read(), 5 * 12.0)


@pytest.mark.parametrize("content", [b"", b"not protobuf at all", None])
def test_what_is_no_graph_is_a_bundle_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "train_b2.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"train_b2\.onnx"):
        Engine(arena_limit_bytes=LIMIT_BYTES).load(path)


def test_missing_unknown_and_misshapen_ports_are_named(toy: Path) -> None:
    engine = Engine(arena_limit_bytes=LIMIT_BYTES)
    graph = engine.load(toy / "eval.onnx")
    inputs = {n: engine.tensor(p.shape) for n, p in graph.inputs.items()}
    logits = {"logits": engine.tensor((4, 3))}
    with pytest.raises(BundleError, match=r"expected ports x, got no such port for y"):
        graph.bind({**{n: t for n, t in inputs.items() if n != "x"}, "y": inputs["x"]}, logits)
    with pytest.raises(BundleError, match=r"logits float32\[4, 4\], got float32\[4, 3\]"):
        graph.bind(inputs, {"logits": engine.tensor((4, 4))})
    with pytest.raises(BundleError, match=r"x float64\[4, 6\]"):
        graph.bind({**inputs, "x": engine.tensor((4, 6), np.float64)}, logits)
