"""The rehearsal: a graph under its planned arena, in processes of its own."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack import rehearse as rehearsing
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.emit import emit_model
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import Rehearsed, gradient_error, rehearse, run_graph
from s2a_edge.spec.errors import InternalError, SourceError, StorageError
from s2a_edge.spec.machine import machine
from s2a_edge.spec.memory_plan import MemoryPlan

FLOATS = 2**16  # 256 KiB a value


@pytest.fixture
def graph(tmp_path: Path) -> tuple[Path, Path, MemoryPlan]:
    """Three values alive at once, its inputs, and its plan."""
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (FLOATS,))
    a = g.op("Add", x, x)
    b = g.op("Neg", a)
    out = g.op("Sub", g.op("Add", a, b), b)
    out.name = "y"
    model = model_of([x], [out], g, "toy")
    emit_model(model, {}, tmp_path / "toy.onnx")
    np.savez(tmp_path / "in.npz", x=np.arange(FLOATS, dtype=np.float32))
    return tmp_path / "toy.onnx", tmp_path / "in.npz", plan_memory(model).plan


def test_a_graph_runs_in_its_plan_and_its_evidence_is_measured(
        graph: tuple[Path, Path, MemoryPlan]) -> None:
    path, inputs, plan = graph
    outputs = path.with_name("out.npz")
    evidence = rehearse(path, plan, inputs, repeat=2, outputs=outputs, threads=1)
    assert plan.arena_bytes == 3 * 4 * FLOATS
    assert 0.95 * plan.arena_bytes <= evidence.arena_measured_bytes <= plan.arena_bytes
    assert evidence.n == 2 and evidence.step_ms > 0 and evidence.machine == machine()
    assert evidence.process_peak_bytes > evidence.runtime_base_bytes > 2**20
    with np.load(outputs) as made:
        np.testing.assert_array_equal(made["y"], 2 * np.arange(FLOATS, dtype=np.float32))


def test_a_plan_that_is_too_small_is_our_bug(graph: tuple[Path, Path, MemoryPlan]) -> None:
    path, inputs, plan = graph
    with pytest.raises(InternalError, match="planned 524288 bytes"):
        rehearse(path, replace(plan, arena_bytes=2 * 4 * FLOATS), inputs, repeat=1)


def test_too_little_memory_is_an_answer_and_not_an_error(graph: tuple[Path, Path, MemoryPlan],
                                                         ) -> None:
    path, inputs, plan = graph
    run = run_graph(path, inputs=inputs, arena_bytes=plan.arena_bytes // 2, threads=1)
    assert not run.ok and "memory limit" in run.failure


def test_without_a_limit_anything_runs(graph: tuple[Path, Path, MemoryPlan]) -> None:
    assert run_graph(graph[0], inputs=graph[1], arena_bytes=None).ok


def test_a_graph_that_cannot_run_is_our_bug(graph: tuple[Path, Path, MemoryPlan]) -> None:
    path, inputs, _ = graph
    path.write_bytes(b"no graph")
    with pytest.raises(InternalError, match=r"rehearsal of toy\.onnx"):
        run_graph(path, inputs=inputs, arena_bytes=None)


def test_a_process_that_breaks_is_our_bug(graph: tuple[Path, Path, MemoryPlan],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InternalError, match="exit 1"):
        run_graph(graph[0], inputs=graph[1], arena_bytes=None)


def test_a_full_disk_is_the_disks_fault(graph: tuple[Path, Path, MemoryPlan]) -> None:
    path, inputs, _ = graph
    outputs = path.with_name("out.npz")
    outputs.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        run_graph(path, inputs=inputs, arena_bytes=None, outputs=outputs)


@pytest.mark.parametrize("truth", [1.0, 0.999, 0.99, 0.95, 0.9])
def test_the_search_finds_the_smallest_arena(truth: float, monkeypatch: pytest.MonkeyPatch,
                                             graph: tuple[Path, Path, MemoryPlan]) -> None:
    """Within half a percent, in few runs; never below what ran."""
    plan = replace(graph[2], arena_bytes=100_000_000)
    tried: list[int] = []

    def fake(path: Path, *, inputs: Path, arena_bytes: int, pool_bytes: int, threads: int | None,
             kernels: Path | None) -> Rehearsed:
        tried.append(arena_bytes)
        return Rehearsed(arena_bytes >= truth * plan.arena_bytes, "", 0, 0, 0, (), "")

    monkeypatch.setattr(rehearsing, "run_graph", fake)
    found = rehearsing._smallest_arena(graph[0], plan, graph[1], 1)
    assert truth <= found / plan.arena_bytes <= truth + 0.006
    assert len(tried) <= 7 and (truth < 1.0 or len(tried) == 1)


# Gradient errors.

def _error(folder: Path, ours: dict[str, list[float]], exact: dict[str, list[float]],
           ) -> list[tuple[Path, Path]]:
    paths = folder / "ours.npz", folder / "exact.npz"
    for path, values in zip(paths, (ours, exact), strict=True):
        np.savez(path, loss=np.zeros(()), **{  # type: ignore[arg-type]  # names are data
            f"acc_out.{n}": np.array(v, np.float32) for n, v in values.items()})
    return [paths]


def test_equal_gradients_have_no_error(tmp_path: Path) -> None:
    same = {"a": [1.0, 2.0], "b": [3.0]}
    error = gradient_error(_error(tmp_path, same, same))
    assert (error.total, error.max, error.median) == (0, 0, 0)
    assert error.cosine == pytest.approx(1.0) and error.each == {"a": 0.0, "b": 0.0}


def test_errors_are_relative_to_each_gradients_norm(tmp_path: Path) -> None:
    error = gradient_error(_error(tmp_path, {"a": [3.0, 4.5], "b": [100.0], "c": [1.0]},
                                   {"a": [3.0, 4.0], "b": [100.0], "c": [2.0]}))
    assert error.each == pytest.approx({"a": 0.1, "b": 0.0, "c": 0.5})
    assert (error.worst, error.max) == ("c", 0.5) and error.median == pytest.approx(0.1)
    norm = math.sqrt(25 + 1e4 + 4)
    assert error.total == pytest.approx(math.sqrt(0.25 + 1) / norm)
    assert error.cosine == pytest.approx(
        (9 + 18 + 1e4 + 2) / (norm * math.sqrt(9 + 20.25 + 1e4 + 1)))


def test_a_gradient_that_is_truly_zero_is_measured_against_the_others(tmp_path: Path) -> None:
    error = gradient_error(_error(tmp_path, {"a": [1.0], "key": [1e-4]}, {"a": [1.0],
                                                                         "key": [0.0]}))
    assert error.each["key"] == pytest.approx(0.1)  # floor: a thousandth of the largest


def test_batches_count_as_one_vector(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    error = gradient_error([*_error(first, {"a": [4.0, 0.0]}, {"a": [3.0, 0.0]}),
                            *_error(second, {"a": [0.0, 4.0]}, {"a": [0.0, 4.0]})])
    assert error.total == error.each["a"] == pytest.approx(1 / 5)


def test_all_gradients_zero_are_no_division_by_zero(tmp_path: Path) -> None:
    error = gradient_error(_error(tmp_path, {"a": [0.0]}, {"a": [0.0]}))
    assert (error.max, error.total) == (0.0, 0.0)


@pytest.mark.parametrize(("ours", "exact", "kind"), [
    (np.nan, 1.0, InternalError), (np.inf, 1.0, InternalError), (np.nan, np.nan, SourceError),
    (1.0, np.inf, SourceError),
])
def test_gradients_must_be_finite(ours: float, exact: float, kind: type[Exception],
                                  tmp_path: Path) -> None:
    with pytest.raises(kind, match="gradient of a"):
        gradient_error(_error(tmp_path, {"a": [ours], "b": [1.0]}, {"a": [exact], "b": [1.0]}))
