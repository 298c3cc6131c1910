"""Training with a pool: the bits of training without one, and steps down to smaller pools."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.graph import Graph
from s2a_edge.run.pool import Pool
from s2a_edge.run.process_arena import can_replace_arena
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.kernels import Kernels
from s2a_edge.spec.requirement import requirement

pytestmark = pytest.mark.skipif(
    not can_replace_arena(), reason="onnxruntime before 1.23 keeps a process's first arena"
)
STEPS = 10  # one epoch of 38 samples, four at a time


def fit(bundle: Path, photos: Path, out: Path, **options: Any) -> Trainer:
    trainer = Trainer(bundle, seed=3, **options)
    trainer.fit(photos, val=photos, out=out, epochs=1, lr=0.01)
    return trainer


def column(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("kernels", ["portable", "native"])
@pytest.mark.parametrize("micro_batch", [4, 1])
def test_losses_and_parameters_are_those_of_the_arena_bit_for_bit(
    kernels: Kernels, micro_batch: int, pooled: Path, unpooled: Path, photos: Path, tmp_path: Path
) -> None:
    plans = [requirement(Bundle.open(path).manifest, micro_batch=micro_batch)
             for path in (pooled, unpooled)]
    assert plans[0].pool_bytes > plans[1].pool_bytes == 0
    for bundle in (pooled, unpooled):
        fit(bundle, photos, tmp_path / bundle.parent.name, micro_batch=micro_batch, kernels=kernels)
    runs = [tmp_path / bundle.parent.name for bundle in (pooled, unpooled)]
    for key in ("loss", "grad_norm", "accuracy"):
        ours, theirs = (column(run, key) for run in runs)
        assert len(ours) == STEPS
        assert ours == theirs
    (info, ours_), (_, theirs_) = (read_checkpoint(run / "last.safetensors") for run in runs)
    assert info.global_step == STEPS
    assert ours_.keys() == theirs_.keys()
    start = Bundle.open(pooled).initial_parameters()
    assert any(not np.array_equal(ours_[f"param.{n}"], start[n]) for n in start)
    for name in ours_:
        np.testing.assert_array_equal(ours_[name], theirs_[name])


def test_a_step_down_changes_to_the_smaller_pool(
    pooled: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger one is given back before the smaller one is made; the mathematics goes on."""
    fit(pooled, photos, tmp_path / "whole")
    manifest = Bundle.open(pooled).manifest
    planned = {n: requirement(manifest, micro_batch=n).pool_bytes for n in (4, 1)}
    made: list[tuple[int, weakref.ref[Any]]] = []
    alive_then: list[int] = []
    map_pool, run_graph = Pool._on_host, Graph.run
    breaks = {"train_b4": 5}  # its rehearsal and four steps

    def mapped(pool: Pool) -> Any:
        alive_then.append(sum(one() is not None for _, one in made))
        memory = map_pool(pool)
        made.append((memory.nbytes, weakref.ref(memory)))
        return memory

    def run(graph: Graph, *, whole: bool = False) -> None:
        run_graph(graph, whole=whole)
        if graph.name in breaks:
            breaks[graph.name] -= 1
            if not breaks[graph.name]:
                raise BudgetError(where=graph.name, expected="a", got="b", todo="c",
                                  missing_bytes=5)

    monkeypatch.setattr(Pool, "_on_host", mapped)
    monkeypatch.setattr(Graph, "run", run)
    trainer = fit(pooled, photos, tmp_path / "run", kernels="portable")
    assert trainer.micro_batch == 1
    assert [size for size, _ in made] == [planned[4], planned[1]]
    assert planned[4] > planned[1] > 0
    assert alive_then == [0, 0]
    for key in ("loss", "grad_norm"):
        ours, theirs = (column(tmp_path / name, key) for name in ("whole", "run"))
        assert len(ours) == STEPS
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)
    (_, ours_), (_, theirs_) = (
        read_checkpoint(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    for name in ours_:
        np.testing.assert_allclose(ours_[name], theirs_[name], rtol=1e-3, atol=1e-4)
