"""Bundles with adapters, from ``pack`` to an exported model, each command in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

from s2a_edge.pack.build import pack
from s2a_edge.pack.options import PackOptions

CLASSES = 3


def _s2a(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "s2a_edge", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def _samples(path: Path, shape: tuple[int, ...], count: int, seed: int) -> None:
    """Noise whose mean tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    images = rng.standard_normal((count, *shape)) + 0.3 * labels[:, None, None, None]
    np.savez(path, image=images.astype(np.float32), labels=labels)


@pytest.mark.parametrize(("name", "adapters"), [
    ("tiny_vit", ("bias", "lrp", "lsb")),
    pytest.param("tiny_resnet", ("bias", "lrp", "lsb"), marks=pytest.mark.slow),
    pytest.param("tiny_vit", ("lora",), marks=pytest.mark.slow),
    pytest.param("tiny_resnet", ("full",), marks=pytest.mark.slow),
])
def test_adapters_train_and_are_in_the_exported_model(name: str, adapters: tuple[str, ...],
                                                      tmp_path: Path) -> None:
    options = PackOptions(classes=CLASSES, adapters=adapters, micro_batches=(8,),
                          effective_batch=16, threads=1, rank=2)
    report = pack(f"tests.pack.models:{name}", tmp_path / "bundle", options)
    groups = {group.adapter: group for group in report.tunable}
    assert set(groups) == {*adapters, "head", "all", "without the head"}
    listed = _s2a("inspect", report.path)
    assert [b["adapters"] for b in listed["manifest"]["tuning"]["found"]] == [
        list(adapters)] * len(listed["manifest"]["tuning"]["found"])

    shape = report.manifest.inputs[0].shape
    for part, count in (("train", 96), ("val", 24)):
        _samples(tmp_path / f"{part}.npz", shape, count, count)
    data = ("--data", tmp_path / "train.npz", "--val", tmp_path / "val.npz")
    _s2a("train", report.path, *data, "--out", tmp_path / "run", "--epochs", 2, "--lr", 0.01)
    changed = load_file(tmp_path / "run" / "last.safetensors")
    start = load_file(report.path / "adapters.safetensors")
    for trainable in report.manifest.trainables:
        tuned = next(v for k, v in changed.items() if k.endswith(f"param.{trainable.name}"))
        assert not np.array_equal(tuned, start[trainable.name]), trainable.name

    score = _s2a("eval", tmp_path / "run", "--data", tmp_path / "val.npz")
    _s2a("export", tmp_path / "run", "--out", tmp_path / "tuned.onnx")
    session = ort.InferenceSession(tmp_path / "tuned.onnx", providers=["CPUExecutionProvider"])
    with np.load(tmp_path / "val.npz") as val:
        hits = [session.run(None, {"image": x[None]})[0].argmax() == y
                for x, y in zip(val["image"], val["labels"], strict=True)]
    assert np.mean(hits) == pytest.approx(score["top1"])
