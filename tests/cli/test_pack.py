"""``pack`` as a user runs it, on a small convolutional network."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from s2a_edge.cli import app
from s2a_edge.cli.pack import pack
from s2a_edge.pack.options import PackOptions
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.manifest import Calibration, Preprocessing
from tests.run.data.samples import write_folders


def _pack(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pack", *map(str, arguments)])


def test_flags_reach_the_bundle(source: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    out = tmp_path / "small.s2a"
    image = ("--mean", "0.5", "--std", "0.5,0.25,0.125", "--scale", "0.00390625")
    recipe = ("--bits", 8, "--batch", 6, "--micro-batch", "2,1", "--optimizer", "sgd")
    rest = ("--channels", "BGR", "--seed", 3, "--device", "orin-nano-8gb", "--threads", 1)
    done = _pack(source, "--out", out, "--labels", labels, *image, *recipe, *rest)
    assert done.exit_code == 0, done.stderr
    assert "capture: " in done.stderr
    assert "train_b2.onnx" in done.stdout
    with Bundle.open(out) as bundle:
        manifest = bundle.manifest
    assert manifest.task.labels == ("cat", "dog")
    assert isinstance(manifest.preprocessing, Preprocessing)
    assert manifest.preprocessing.mean == (0.5, 0.5, 0.5)
    assert manifest.preprocessing.std == (0.5, 0.25, 0.125)
    assert (manifest.preprocessing.channels, manifest.preprocessing.scale) == ("BGR", 2**-8)
    assert (manifest.recipe.bits, manifest.recipe.effective_batch) == (8, 6)
    assert manifest.recipe.micro_batches == (1, 2)
    assert (manifest.recipe.optimizer, manifest.recipe.seed) == ("sgd", 3)
    assert manifest.recipe.device == "orin-nano-8gb"


def test_gradient_errors_are_measured_on_the_data_that_is_given(
    source: Path, tmp_path: Path
) -> None:
    write_folders(tmp_path / "data", {"cat": 3, "dog": 4})
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    arguments = ("--labels", labels, "--micro-batch", 2, "--batch", 2, "--threads", 1)
    calibration = ("--calibration", tmp_path / "data", "--calibration-samples", 5)
    done = _pack(source, "--out", tmp_path / "a.s2a", *arguments, *calibration)
    assert done.exit_code == 0, done.stderr
    assert "calibrate: at most 5 samples of data" in done.stderr
    with Bundle.open(tmp_path / "a.s2a") as bundle:
        assert bundle.manifest.precision.calibration == Calibration("data", 4)


def test_a_folder_and_json(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ("--classes", 2, "--batch", 1, "--micro-batch", 1, "--threads", 1, "--json")
    done = _pack(source, "--out", out, *arguments)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["path"] == str(out)
    assert report["manifest"]["task"]["classes"] == 2
    assert (out / "manifest.json").is_file()


def test_list_features(source: Path) -> None:
    done = _pack(source, "--list-features", "--json")
    assert done.exit_code == 0, done.stderr
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert listed["r2"]["pools"] == ["gap"]
    assert "features" in _pack(source, "--list-features").stdout


def test_list_blocks(source: Path) -> None:
    done = _pack(source, "--list-blocks", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)
    assert "residual" in _pack(source, "--list-blocks").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--classes", "2"], 2, "--out"),
        (["--out", "x.s2a"], 2, "neither --labels nor --classes"),
        (["--out", "x.s2a", "--classes", "2", "--bits", "5"], 2, "--bits"),
        (["--out", "x.s2a", "--classes", "2", "--bits", "many"], 2, "auto or a number"),
        (["--out", "x.s2a", "--classes", "2", "--saved-budget", "8MB"], 2, "--bits auto"),
        (["--out", "x.s2a", "--classes", "2", "--budget", "8M"], 2, "--budget"),
        (["--out", "x.s2a", "--classes", "2", "--input", "3xx"], 2, "--input"),
        (["--out", "x.s2a", "--classes", "2", "--device", "toaster"], 1, "toaster"),
        (["--out", "x.s2a", "--classes", "2", "--features", "nope"], 1, "nope"),
        (["--out", "x.s2a", "--classes", "2", "--blocks", "last:99"], 2, "--blocks"),
        (["--out", "x.s2a", "--classes", "2", "--target-modules", "qkv"], 2, "--target-modules"),
        (["--out", "x.s2a", "--classes", "2", "--calibration", "gone"], 1, "--calibration: gone"),
    ],
)
def test_wrong_flags(
    source: Path, arguments: list[str], code: int, expected: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = _pack(source, *arguments)
    assert done.exit_code == code
    assert expected in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_missing_source(tmp_path: Path) -> None:
    done = _pack(tmp_path / "gone.onnx", "--classes", 2, "--out", tmp_path / "x.s2a")
    assert done.exit_code == 1
    assert "gone.onnx" in done.stderr.splitlines()[-1]


def test_defaults_are_those_of_the_recipe() -> None:
    shown = {name: p.default for name, p in inspect.signature(pack).parameters.items()}
    recipe = {field.name: field.default for field in fields(PackOptions)}
    assert shown["batch"] == recipe["effective_batch"]
    assert (int(shown["micro_batch"]),) == recipe["micro_batches"]
    assert tuple(shown["adapters"].split(",")) == recipe["adapters"]
    assert int(shown["bits"]) == recipe["bits"]
    for name in ("attention", "loss", "optimizer", "seed", "pool", "features", "threads",
                 "calibration", "calibration_samples"):
        assert shown[name] == recipe[name]


def test_artifacts_of_the_training_api(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    shared = ("--classes", 3, "--micro-batch", 2, "--batch", 4, "--format", "ort-training")
    done = _pack(source, "--out", out, *shared, "--json")
    assert done.exit_code == 0, done.output
    about = json.loads(done.stdout)["description"]
    assert about["training_inputs"] == {"image": [2, 3, 8, 8], "target": [2, 3], "weight": [2]}
    assert (out / "training_model.onnx").is_file() and (out / "checkpoint").is_file()


@pytest.mark.parametrize("extra", [("--format", "tflite"), ("--format", "ort-training", "--sign",
                                                            "key")])
def test_formats_and_what_they_cannot_have(source: Path, tmp_path: Path,
                                           extra: tuple[str, ...]) -> None:
    done = _pack(source, "--out", tmp_path / "x", "--classes", 3, *extra)
    assert done.exit_code == 2
    assert not (tmp_path / "x").exists()
