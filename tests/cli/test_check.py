"""``check`` on a small bundle: what it needs, whether it fits, exit 0 or 3."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from s2a_edge.cli import app
from s2a_edge.spec.bundle_write import write_bundle
from tests.spec.bundle_samples import manifest, stage


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The sample bundle, with a larger arena for its larger micro-batch."""
    sample = manifest()
    small, large = sample.graphs.train
    plan = dataclasses.replace(large.plan, arena_bytes=4 * small.plan.arena_bytes)
    train = (small, dataclasses.replace(large, plan=plan))
    graphs = dataclasses.replace(sample.graphs, train=train)
    staging = stage(tmp_path / "staging")
    return write_bundle(staging, dataclasses.replace(sample, graphs=graphs), tmp_path / "tiny.s2a")


def _check(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", str(bundle), *arguments])


def _needs(bundle: Path, micro_batch: int) -> int:
    done = _check(bundle, "--micro-batch", str(micro_batch), "--json")
    total = json.loads(done.stdout)["requirements"][0]["total_bytes"]
    assert isinstance(total, int)
    return total


def test_fits(bundle: Path) -> None:
    done = _check(bundle, "--budget", "1GiB")
    assert done.exit_code == 0
    assert "fits 1.00 GiB with" in done.stdout
    assert done.stderr == ""


def test_the_total_is_the_edge(bundle: Path) -> None:
    needed = _needs(bundle, 1)
    exact = _check(bundle, "--budget", str(needed), "--micro-batch", "1", "--json")
    assert exact.exit_code == 0
    assert json.loads(exact.stdout)["verdict"]["headroom_bytes"] == 0
    short = _check(bundle, "--budget", str(needed - 1), "--micro-batch", "1", "--json")
    assert short.exit_code == 3
    assert json.loads(short.stdout)["verdict"]["missing_bytes"] == 1
    assert short.stderr.startswith("error: training with micro-batch 1: expected at least")


def test_without_validation_its_session_is_not_counted(bundle: Path) -> None:
    with_val, without = (
        json.loads(_check(bundle, "--json", option).stdout)["requirements"][0]
        for option in ("--val", "--no-val")
    )
    assert without["total_bytes"] < with_val["total_bytes"]
    assert [p["phase"] for p in with_val["phases"]][1] == "evaluation"
    assert "evaluation" not in [p["phase"] for p in without["phases"]]


def test_takes_the_largest_micro_batch_that_fits(bundle: Path) -> None:
    between = _needs(bundle, 1)
    assert between < _needs(bundle, 2)
    done = _check(bundle, "--budget", str(between), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["requirement"]["micro_batch"] == 1


def test_without_a_budget_it_lists_every_micro_batch(bundle: Path) -> None:
    done = _check(bundle)
    assert done.exit_code == 0
    assert "micro-batch 2" in done.stdout
    assert "micro-batch 1" in done.stdout


def test_budget_of_a_device(bundle: Path) -> None:
    done = _check(bundle, "--device", "orin-nano-8gb", "--json")
    assert done.exit_code == 0
    budget = json.loads(done.stdout)["budget"]
    assert budget["budget_bytes"] == sum(line["size_bytes"] for line in budget["lines"])


def test_budget_of_this_device(bundle: Path) -> None:
    done = _check(bundle, "--this-device", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["budget"]["origin"].startswith("this device")


def test_one_budget_at_a_time(bundle: Path) -> None:
    done = _check(bundle, "--budget", "1GiB", "--this-device")
    assert done.exit_code == 2
    assert "--budget and --this-device" in done.stderr


def test_micro_batch_that_was_not_packed(bundle: Path) -> None:
    done = _check(bundle, "--micro-batch", "3")
    assert done.exit_code == 2
    assert "one of the packed micro-batches, 2, 1" in done.stderr


def test_not_a_bundle(tmp_path: Path) -> None:
    file = tmp_path / "photo.s2a"
    file.write_bytes(b"no tar")
    done = _check(file, "--budget", "1GiB", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"].startswith("Bundle")
    assert done.stderr.count("\n") == 1


def test_cuda_adds_copies_of_the_weights_and_arenas(bundle: Path) -> None:
    on_cpu, on_cuda = (json.loads(_check(bundle, "--json", option, name).stdout)["requirements"][0]
                       for option, name in (("--engine", "cpu"), ("--provider", "cuda")))
    labels = {line["label"] for line in on_cuda["lines"]} - {
        line["label"] for line in on_cpu["lines"]}
    assert any("copy for each of 2 sessions" in label for label in labels)
    assert "arenas of the other sessions" in labels


def test_auto_looks_at_this_device_and_says_what_it_chose(bundle: Path) -> None:
    refused = _check(bundle, "--engine", "auto", "--budget", "1GiB")
    assert refused.exit_code == 2
    assert "--this-device" in refused.stderr
    chosen = _check(bundle, "--engine", "auto", "--this-device")
    assert "engine cpu: this onnxruntime has no CUDA provider" in chosen.stderr
