"""A budget that ``pack`` accepts is one that ``check`` and ``train`` accept on the same host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.requirement import requirement
from s2a_edge.spec.units import KIB, MIB

EXHAUSTED = 3
RESOLUTION_BYTES = 512 * KIB
"""Rehearsals of one graph differ by about that much."""
RECIPE = ("--classes", 2, "--batch", 4, "--micro-batch", 4, "--no-native")


def s2a(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2a_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as a plan counts on, so that little of what it counts for decoding is left over."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1070, 1920, 3), dtype=np.uint8)
    for number, name in enumerate(("0.jpg", "1.jpg", "2.png", "3.png")):
        file = folder / "ab"[number % 2] / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


def smallest_budget(source: Path, out: Path) -> int:
    """By bisection, with a real pack at each budget; ``out`` is of the last one accepted."""
    done = s2a("pack", source, "--out", out, *RECIPE, "--budget", MIB, "--json")
    assert done.returncode == EXHAUSTED, done.stderr
    needed_bytes = MIB + int(json.loads(done.stdout)["missing_bytes"])
    refused_bytes, accepted_bytes = needed_bytes - MIB, needed_bytes + MIB
    done = s2a("pack", source, "--out", out, *RECIPE, "--budget", accepted_bytes)
    assert done.returncode == 0, done.stderr
    while accepted_bytes - refused_bytes > RESOLUTION_BYTES:
        budget_bytes = (accepted_bytes + refused_bytes) // 2
        done = s2a("pack", source, "--out", out, *RECIPE, "--budget", budget_bytes)
        assert done.returncode in (0, EXHAUSTED), done.stderr
        if done.returncode:
            refused_bytes = budget_bytes
        else:
            accepted_bytes = budget_bytes
    return accepted_bytes


def test_the_smallest_budget_that_pack_accepts_is_enough_for_check_and_train(
    source: Path, photographs: Path, tmp_path: Path
) -> None:
    bundle, run = tmp_path / "b.s2a", tmp_path / "run"
    budget_bytes = smallest_budget(source, bundle)
    with Bundle.open(bundle) as opened:
        needed_bytes = requirement(opened.manifest).total_bytes
    assert budget_bytes - 2 * RESOLUTION_BYTES < needed_bytes <= budget_bytes
    # Not even what the last pack left over is needed.
    done = s2a("check", bundle, "--budget", needed_bytes)
    assert done.returncode == 0, done.stderr
    train = ("train", bundle, "--data", photographs, "--val", photographs, "--epochs", 1)
    done = s2a(*train, "--no-step-down", "--budget", needed_bytes, "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["peak_bytes"] <= needed_bytes
    assert summary["micro_batch"] == 4
    assert s2a("check", bundle, "--budget", needed_bytes - 1).returncode == EXHAUSTED
    done = s2a(*train, "--budget", needed_bytes - 4 * MIB, "--out", tmp_path / "none")
    assert done.returncode == EXHAUSTED
    assert not (tmp_path / "none").exists()


def test_check_of_this_device_says_what_train_says(
    source: Path, photographs: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "b.s2a"
    assert s2a("pack", source, "--out", bundle, *RECIPE).returncode == 0
    checked = json.loads(s2a("check", bundle, "--this-device", "--json").stdout)["requirement"]
    budget_bytes = checked["total_bytes"]
    train = ("train", bundle, "--data", photographs, "--val", photographs, "--epochs", 1)
    refused = s2a(*train, "--out", tmp_path / "none", "--budget", budget_bytes - 1, "--json")
    assert refused.returncode == EXHAUSTED
    assert json.loads(refused.stdout)["missing_bytes"] == 1
    accepted = s2a(*train, "--out", tmp_path / "run", "--budget", budget_bytes)
    assert accepted.returncode == 0, accepted.stderr
