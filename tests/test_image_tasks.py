"""Images with labels and with numbers, from ``pack`` to the exported model, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import s2a_edge
from s2a_edge.run.data import open_data
from s2a_edge.spec.bundle import Bundle

SIDE = 24
LABELS = ("red", "bright", "striped")
NUMBERS = ("brightness", "redness")


def s2a(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2a_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def as_json(*arguments: object) -> Any:
    done = s2a(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Colours and stripes; ``labels.csv`` says which, ``numbers.csv`` how much."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    labels, numbers = ["file,labels"], ["file,brightness,redness"]
    for i in range(count):
        on = rng.integers(0, 2, 3)
        pixels = np.full((SIDE, SIDE, 3), 180 if on[1] else 60, np.float64)
        pixels[..., 0] += 60 * on[0]
        pixels[::4] *= 0.4 if on[2] else 1.0
        pixels += 8 * rng.standard_normal(pixels.shape)
        name = f"{i:03}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        labels.append(f"{name},{';'.join(n for n, v in zip(LABELS, on, strict=True) if v)}")
        bright = pixels.mean()
        numbers.append(f"{name},{bright:.4f},{pixels[..., 0].mean() - bright:.4f}")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "numbers.csv").write_text("\n".join(numbers) + "\n")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_images(folder / "train", 48, 1)
    write_images(folder / "val", 24, 2)
    recipe: dict[str, Any] = {"effective_batch": 8, "micro_batches": (8,)}
    for loss, labels in (("bce", LABELS), ("l1", NUMBERS)):
        s2a_edge.pack("tests.pack.models:tiny_resnet", folder / f"{loss}.s2a", loss=loss,
                      labels=labels, **recipe)
    return folder


def predictions(model: Path, bundle: Path, data: Path) -> np.ndarray:
    """Of the exported model alone, on what a user would feed it: one prepared image at a time."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with Bundle.open(bundle) as opened:
        samples = open_data(data, opened.manifest)
    spec = samples.inputs[0]
    rows = []
    for i in range(len(samples)):
        row = {spec.name: np.zeros(spec.shape, np.float32)}
        samples.load(i, row)
        rows.append(session.run(["logits"], {spec.name: row[spec.name][None]})[0][0])
    return np.array(rows)


def test_several_labels(place: Path) -> None:
    run = place / "labels"
    done = s2a("train", place / "bce.s2a", "--data", place / "train", "--val", place / "val",
               "--epochs", 5, "--lr", 0.02, "--class-weights", "balanced", "--label-smoothing",
               0.05, "--no-augment", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "validating 5/5  val loss " in done.stderr and "  val mAP " in done.stderr
    assert "val macro F1" in done.stdout and "best mAP" in done.stdout
    result = as_json("eval", run, "--data", place / "val")
    assert result["mean_ap"] > 0.8 and result["n"] == 24
    assert [row["label"] for row in result["per_label"]] == list(LABELS)
    shown = s2a("eval", run, "--data", place / "val" / "labels.csv").stdout
    assert "mAP " in shown and "average precision" in shown and "striped" in shown
    written = as_json("export", run, "--out", place / "labels.onnx")
    assert "sigmoid gives probabilities" in written["output"]
    logits = predictions(place / "labels.onnx", place / "bce.s2a", place / "val")
    with Bundle.open(place / "bce.s2a") as bundle:
        on = open_data(place / "val", bundle.manifest).targets
    assert float(np.mean((logits > 0) == on)) == pytest.approx(result["accuracy"])


def test_numbers(place: Path) -> None:
    run, val = place / "numbers", place / "val" / "numbers.csv"
    done = s2a("train", place / "l1.s2a", "--data", place / "train" / "numbers.csv", "--val", val,
               "--epochs", 6, "--lr", 0.05, "--no-augment", "--patience", 5, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "accuracy" not in done.stderr + done.stdout
    assert "val MAE" in done.stdout and "best loss" in done.stdout
    result = as_json("eval", run, "--data", val)
    assert result["r2"] > 0.5
    assert [row["label"] for row in result["per_output"]] == list(NUMBERS)
    assert "R²" in s2a("eval", run, "--data", val).stdout
    exported = s2a("export", run, "--out", place / "numbers.onnx")
    assert "in the targets' own units" in exported.stdout
    predicted = predictions(place / "numbers.onnx", place / "l1.s2a", val)
    with Bundle.open(place / "l1.s2a") as bundle:
        error = predicted - open_data(val, bundle.manifest).targets
    assert float(np.abs(error).mean()) == pytest.approx(result["mae"], rel=1e-3)


def test_what_was_packed_is_shown(place: Path) -> None:
    shown = s2a("inspect", place / "l1.s2a").stdout
    assert "l1" in shown and "2: brightness, redness" in shown
    assert "3: red, bright, striped" in s2a("inspect", place / "bce.s2a").stdout


@pytest.mark.parametrize(("bundle", "arguments", "message"), [
    ("bce", ["--data", "train", "--class-weights", "1,2"], "3 numbers, one for each class, got 2"),
    ("bce", ["--data", "train", "--class-weights", "none.txt"], "no such file"),
    ("bce", ["--data", "train/numbers.csv"], "a column for each label of the bundle"),
    ("l1", ["--data", "train"], "a column for each output of the bundle"),
    ("l1", ["--data", "train/numbers.csv", "--class-weights", "balanced"], "l1 has no classes"),
    ("l1", ["--data", "train/numbers.csv", "--label-smoothing", "0.1"], "l1 has no labels"),
    ("l1", ["--data", "train/numbers.csv", "--patience", "2"], "give some with --val"),
])
def test_what_does_not_fit_is_one_line(place: Path, bundle: str, arguments: list[str],
                                       message: str) -> None:
    given = [place / a if a.startswith("train") else a for a in arguments]
    done = s2a("train", place / f"{bundle}.s2a", *given, "--out", place / "refused")
    assert done.returncode in (1, 2)
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (place / "refused").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--loss", "hinge", "--classes", 3], "cross_entropy, bce, mse, l1 or output:NAME"),
    (["--loss", "mse", "--classes", 3], "--outputs with --loss mse"),
    (["--loss", "bce", "--outputs", 3], "--classes with --loss bce"),
    (["--loss", "mse"], "neither --labels nor --outputs"),
    (["--loss", "output:loss", "--classes", 3], "none with --loss output:loss"),
    (["--loss", "output:loss"], "expected an ONNX file"),
    (["--loss", "output:", "--classes", 3], "output:NAME"),
])
def test_pack_refuses_what_contradicts(tmp_path: Path, arguments: list[object], message: str,
                                       ) -> None:
    done = s2a("pack", "tests.pack.models:tiny_resnet", "--out", tmp_path / "b", "--quiet",
               *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
