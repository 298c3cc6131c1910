"""The runtime matrix: its tool on this onnxruntime, and on older ones (``-m ortmatrix``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.toy_bundle import write_toy_bundle
from tools.ort_matrix import VERSIONS, table
from tools.ort_matrix_case import Case, Environment, Result, difference, run_case, write_samples

ROOT = Path(__file__).parents[2]
# Kernels of different releases add up in different orders; at 4 bits a value that lies between two
# codes may fall to either side. Measured on the tiny models, four releases: losses of two epochs
# differ by up to 8.7e-6 (ViT, 4 bits), 1.2e-7 (all others); ten times that.
MAX_LOSS_DIFFERENCE = {"tiny_vit-4": 1e-4, "tiny_vit-32": 2e-6, "tiny_resnet-4": 2e-6}


@pytest.mark.slow
def test_a_case_passes_on_this_onnxruntime(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy")
    samples = write_samples(bundle, tmp_path / "data", real=False)
    here = Environment(Path(sys.executable), ROOT)
    results: list[Result] = []
    for name in ("first", "second"):
        case = Case(name, "toy", bundle, samples, tmp_path / name, 1)
        results.append(run_case(case, here, reference=results[0] if results else None))
    first, second = results
    assert (first.failed, second.failed) == ({}, {})
    assert second.losses_against_first == second.logits_against_first == "equal"
    assert len(first.losses) == 20  # 40 samples in batches of 4, twice
    assert first.needed_bytes is not None and first.peak_bytes is not None
    assert first.peak_bytes <= first.needed_bytes + 2**21
    assert set(first.arenas) == {"train_b1.onnx", "train_b2.onnx", "eval.onnx", "optimizer.onnx"}
    assert all(x["smallest_bytes"] <= x["limit_bytes"] for x in first.arenas.values())


def test_a_stage_that_fails_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy")
    samples = write_samples(bundle, tmp_path / "data", real=False)
    deaf = Environment(Path("/bin/true"), ROOT)
    result = run_case(Case("true", "toy", bundle, samples, tmp_path / "x", 1), deaf, None)
    assert not result.ok
    assert set(result.failed) == {"check", "train", "resume", "eval", "export", "arena"}
    assert result.failed["check"].startswith("exit 0")
    assert "check: exit 0" in table([result])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], "equal"),
        ([[1.0], [2.0]], [[1.0], [2.5]], "5.0e-01"),
        ([1.0], [1.0, 2.0], "not comparable"),
        ([], [], "not comparable"),
    ],
)
def test_difference(ours: list[float], theirs: list[float], expected: str) -> None:
    assert difference(ours, theirs) == expected


@pytest.mark.ortmatrix
def test_older_releases_train_as_the_newest(tmp_path: Path) -> None:
    report = tmp_path / "matrix.json"
    done = subprocess.run(
        [sys.executable, "tools/ort_matrix.py", "--json", str(report)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())["results"]
    assert {row["requirement"] for row in rows} == set(VERSIONS)
    for row in rows:
        first = next(r for r in rows if r["bundle"] == row["bundle"])
        largest = max(abs(a - b) for a, b in zip(row["losses"], first["losses"], strict=True))
        assert largest <= MAX_LOSS_DIFFERENCE.get(row["bundle"], 2e-6), row["requirement"]
