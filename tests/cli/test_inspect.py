"""``inspect``: what a bundle is, counted and hashed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from s2a_edge.cli import app
from s2a_edge.cli.inspect import saved_groups
from s2a_edge.spec.manifest import SavedValue, TunedBlock, Tuning
from tests.spec.bundle_samples import manifest, write_sample


def test_tables(tmp_path: Path) -> None:
    bundle = write_sample(tmp_path / "tiny.s2a")
    done = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert done.exit_code == 0, done.stderr
    for expected in ("onnx:tiny.onnx", "without the head", "train_b2.onnx", "uint4", "weights.bin"):
        assert expected in done.stdout


def test_json_has_manifest_and_hashes(tmp_path: Path) -> None:
    bundle = write_sample(tmp_path / "tiny")
    done = CliRunner().invoke(app, ["inspect", str(bundle), "--json"])
    shown = json.loads(done.stdout)
    assert shown["manifest"] == json.loads((bundle / "manifest.json").read_text())
    weights = hashlib.sha256((bundle / "weights.bin").read_bytes()).hexdigest()
    assert shown["sha256"]["weights.bin"] == weights


def test_blocks_are_listed_with_their_adapters(tmp_path: Path) -> None:
    found = (TunedBlock("blocks.0", (4, 3), True, ()),
             TunedBlock("blocks.1", (4, 3), True, ("lrp",)))
    made = replace(manifest(), tuning=Tuning(rank=2, blocks="last:1", found=found))
    bundle = write_sample(tmp_path / "tiny", made)
    done = CliRunner().invoke(app, ["inspect", str(bundle)])
    lines = done.stdout.splitlines()
    assert any("blocks.0" in line and "4x3" in line and "lrp" not in line for line in lines)
    assert any("blocks.1" in line and "lrp" in line for line in lines)
    assert any("blocks" in line and "last:1" in line for line in lines)


def test_saved_values_by_kind_and_codec() -> None:
    values = [
        SavedValue("a", "m", "activation", "uint4", 4.0, (2, 100), 100),
        SavedValue("b", "m", "activation", "uint4", 8.0, (2, 300), 600),
        SavedValue("c", "m", "mask", "uint1", 1.0, (8,), 1),
    ]
    first, second = saved_groups(values)
    assert (first.kind, first.values, first.stored_bytes) == ("activation", 2, 700)
    assert first.bits == pytest.approx(7.0)
    assert first.float32_bytes == 800 * 4
    assert (second.kind, second.bits) == ("mask", 1.0)
