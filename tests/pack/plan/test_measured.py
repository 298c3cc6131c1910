"""The plan against ONNX Runtime itself: arenas are shrunk until the graph no longer runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from tests.pack.plan.map_graphs import MAP_OPERATORS, map_graph
from tests.pack.plan.random_graphs import random_graph
from tests.pack.plan.step_samples import attention_step, conv_step, mlp_step

ROOT = Path(__file__).parents[3]
# The plan may be looser than what was measured by this much, and never tighter. What is modelled
# is exact; the rest is the window in which a plan must hold (see ``smallest_arena_bytes``).
LOOSENESS = 1.05

STEPS: dict[str, Callable[[], ir.Model]] = {
    "mlp4": lambda: mlp_step(blocks=8, width=96, rows=64, bits=4),
    "mlp8": lambda: mlp_step(blocks=5, width=56, rows=100, bits=8),
    "mlp32": lambda: mlp_step(blocks=6, width=64, rows=64, bits=32),
    "conv1": lambda: conv_step(channels=(16, 32, 32, 48), size=32, batch=1),
    "conv2": lambda: conv_step(channels=(8, 24, 16), size=40, batch=2),
    "attention": lambda: attention_step(tokens=50, heads=3, width=16, blocks=4),
}


def compare(folder: Path, models: dict[str, ir.Model], threads: int) -> list[dict[str, Any]]:
    """Rows of ``tools/measure_arena.py``, exact to 256 bytes."""
    paths = []
    for name, model in models.items():
        paths.append(folder / f"{name}.onnx")
        ir.save(model, paths[-1])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/measure_arena.py"), "--json", "--threads", str(threads),
         *map(str, paths)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def check(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        plan, measured = row["plan_arena_bytes"], row["measured_arena_bytes"]
        assert measured <= plan <= LOOSENESS * measured, row


def test_training_steps(tmp_path: Path) -> None:
    check(compare(tmp_path, {name: make() for name, make in STEPS.items()}, 2))


def test_convolutions_on_one_thread(tmp_path: Path) -> None:
    check(compare(tmp_path, {name: STEPS[name]() for name in ("conv1", "conv2")}, 1))


def test_random_graphs(tmp_path: Path) -> None:
    check(compare(tmp_path, {f"g{seed}": random_graph(seed, 30) for seed in range(8)}, 1))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_many_random_graphs(tmp_path: Path, threads: int) -> None:
    seeds = range(100 * threads, 100 * threads + 50)
    models = {f"g{seed}": random_graph(seed, 10 + seed % 60) for seed in seeds}
    check(compare(tmp_path, models, threads))


def test_resizing(tmp_path: Path) -> None:
    check(compare(tmp_path, {name: map_graph(name) for name in ("linear_down", "antialias")}, 2))


@pytest.mark.slow
def test_operators_over_maps(tmp_path: Path) -> None:
    check(compare(tmp_path, {name: map_graph(name) for name in MAP_OPERATORS}, 2))
