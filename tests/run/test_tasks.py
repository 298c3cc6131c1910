"""Every task from data to exported model: it learns, is scored, resumed, evaluated and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.finished_run import evaluate_run, export_run
from s2a_edge.run.metrics import (
    ClassificationResult,
    LossResult,
    MultiLabelResult,
    RegressionResult,
)
from s2a_edge.run.report import Progress
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import DataError, UsageError
from s2a_edge.spec.task_ports import Loss
from tests.run.test_fit import signal_at
from tests.run.toy_bundle import write_task_samples, write_toy_bundle

LOSSES: list[Loss] = ["cross_entropy", "bce", "mse", "l1", "output"]
RESULTS = {"cross_entropy": ClassificationResult, "bce": MultiLabelResult, "mse": RegressionResult,
           "l1": RegressionResult, "output": LossResult}


class Place:
    """A bundle of one loss, training and validation data, and where runs go."""

    def __init__(self, folder: Path, loss: Loss) -> None:
        self.folder, self.loss = folder, loss
        self.bundle = write_toy_bundle(folder / "bundle", loss=loss)
        self.train = write_task_samples(folder / "train.npz", loss, 38)
        self.val = write_task_samples(folder / "val.npz", loss, 21, seed=2)

    def fit(self, name: str, **options: Any) -> Any:
        settings = {"val": self.val, "epochs": 6, "lr": 0.05, "out": self.folder / name}
        return Trainer(self.bundle, seed=3).fit(self.train, **{**settings, **options})


@pytest.fixture(scope="module", params=LOSSES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def run(place: Place) -> Path:
    place.fit("run")
    return place.folder / "run"


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def test_it_learns_and_keeps_the_best_epoch(place: Place) -> None:
    summary = place.fit("learns")
    losses = [record.val_loss for record in summary.history]
    assert losses[-1] < 0.8 * losses[0]
    name = {"cross_entropy": "top1", "bce": "mean_ap"}.get(place.loss, "loss")
    assert summary.best_metric == name

    def rank(record: Any) -> tuple[float, float]:
        return record.val_metrics.get(name, 0.0), -record.val_loss

    # The first of equals stays: a later one must be better.
    assert summary.best_epoch == max(summary.history, key=rank).epoch
    info, _ = read_checkpoint(summary.out / "best.safetensors")
    assert info.best is not None and info.best.metric == name
    scored = place.loss in ("cross_entropy", "bce")
    assert all((record.accuracy is not None) == scored for record in summary.history)
    steps = 9 if place.loss == "output" else 10  # 38 samples by 4: the ragged step is dropped
    assert summary.steps == 6 * steps


def test_evaluation_of_the_run_is_the_validation_of_its_best_epoch(place: Place, run: Path) -> None:
    result = evaluate_run(run, place.val)
    assert isinstance(result, RESULTS[place.loss])
    info, _ = read_checkpoint(run / "best.safetensors")
    record = info.history[-1]
    assert (result.loss, result.metrics) == (record.val_loss, record.val_metrics)
    assert result.n == (20 if place.loss == "output" else 21)
    if isinstance(result, LossResult):
        assert result.left_out == 1


def test_a_resumed_run_is_the_same_bits(place: Place, run: Path) -> None:
    options = {"label_smoothing": 0.0, "out": place.folder / "parts"}
    place.fit("parts", on_progress=signal_at(2, 4), **options)
    place.fit("parts", resume=True, **options)
    (one, a), (two, b) = (read_checkpoint(r / "last.safetensors")
                          for r in (run, place.folder / "parts"))
    assert (one.history, one.best) == (two.history, two.best)
    assert {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}


def test_progress_of_the_validation_is_the_validations(place: Place) -> None:
    told: list[Progress] = []
    summary = place.fit("told", epochs=2, on_progress=told.append)
    first = next(now for now in told if now.phase == "train")
    assert (first.val_loss, first.val_score) == (None, None)
    for epoch in (1, 2):
        validating = [n for n in told if n.phase == "validate" and n.epoch == epoch]
        record = summary.history[epoch - 1]
        assert [now.step for now in validating] == list(range(1, validating[0].steps + 1))
        assert all(now.val_loss is not None for now in validating)
        assert validating[-1].val_loss == record.val_loss != validating[0].val_loss
        expected = record.val_metrics.get(summary.best_metric, record.val_loss)
        assert (validating[-1].val_metric, validating[-1].val_score) == (
            summary.best_metric, expected)
    later = [now for now in told if now.phase == "train" and now.epoch == 2]
    assert all(now.val_loss == summary.history[0].val_loss for now in later)


def test_metrics_are_plain_json(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert len(epochs) == 6 and all(isinstance(line["val_metrics"], dict) for line in epochs)


def test_the_exported_model_gives_what_evaluation_scores(place: Place, run: Path) -> None:
    exported = export_run(run, place.folder / "tuned.onnx")
    onnx.checker.check_model(str(exported.path), full_check=True)
    session = ort.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    data = arrays(place.val)
    logits = np.concatenate([session.run(None, {"x": row[None]})[0] for row in data["x"]])
    metrics = evaluate_run(run, place.val).metrics
    if place.loss == "output":
        assert exported.output == "logits [1, 3]"
        z = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), data["y"]]
        expected = evaluate_run(run, place.val).loss
        assert float(losses[:20].mean()) == pytest.approx(expected, rel=1e-5)
        return
    assert "logits [1, 3]" in exported.output
    if place.loss == "cross_entropy":
        assert float(np.mean(logits.argmax(1) == data["labels"])) == metrics["top1"]
    elif place.loss == "bce":
        assert float(np.mean((logits > 0) == data["labels"])) == metrics["accuracy"]
    else:
        # In the targets' own units, around 300, though the graph learned standardised ones.
        assert "targets' own units" in exported.output
        error = float(np.abs(logits - data["targets"]).mean())
        assert error == pytest.approx(metrics["mae"], rel=1e-4)
        assert error < 30


def test_one_step_is_one_step_of_fit_without_shuffling(place: Place) -> None:
    data = arrays(place.train)
    inputs = {name: rows[:4] for name, rows in data.items() if name in ("x", "y")}
    targets = next((data[name][:4] for name in ("labels", "targets") if name in data), None)
    whole, parts = (Trainer(place.bundle, micro_batch=micro) for micro in (2, 1))
    one, two = (t.step(inputs, targets, lr=0.1) for t in (whole, parts))
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-5)
    assert (one.accuracy is None) == (place.loss not in ("cross_entropy", "bce"))


def test_targets_of_another_task_are_refused(place: Place) -> None:
    inputs = {name: rows[:4] for name, rows in arrays(place.train).items() if name in ("x", "y")}
    with pytest.raises(DataError, match="targets: expected"):
        Trainer(place.bundle).step(inputs, np.full((4, 3), np.nan), lr=0.1)


def test_out_of_patience_the_run_ends_and_stays_ended(place: Place) -> None:
    # So small a rate changes nothing that float32 scores could see: epoch 1 stays the best.
    options = {"epochs": 9, "lr": 1e-30, "patience": 2}
    summary = place.fit("patience", **options)
    assert (summary.epochs, summary.best_epoch) == (3, 1)
    assert summary.out_of_patience and summary.stopped_by is None
    again = place.fit("patience", resume=True, **options)
    assert again.history == summary.history and again.out_of_patience
    patient = place.fit("patient", epochs=2, lr=1e-30, patience=5)
    assert patient.epochs == 2 and not patient.out_of_patience


def test_settings_that_mean_nothing_for_the_task_are_refused(place: Place) -> None:
    wrong: list[dict[str, Any]] = [{"val": None, "patience": 2}, {"patience": 0}]
    if place.loss not in ("cross_entropy", "bce"):
        wrong += [{"label_smoothing": 0.1}, {"class_weights": "balanced"}]
    for options in wrong:
        with pytest.raises(UsageError):
            place.fit("refused", **options)
    assert not (place.folder / "refused").exists()


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_class_weights_reach_the_run_and_its_resumption(tmp_path: Path, loss: Loss) -> None:
    place = Place(tmp_path, loss)
    place.fit("run", epochs=1, class_weights="balanced", label_smoothing=0.1)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    weights = settings["class_weights"]
    assert len(weights) == 3 and len(set(weights)) > 1
    info, _ = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert info.settings.class_weights == tuple(weights)
    plain = place.fit("plain", epochs=1, label_smoothing=0.1)
    weighted = place.fit("same", epochs=1, label_smoothing=0.1, class_weights=tuple(weights))
    assert weighted.history[0].loss != plain.history[0].loss
    (_, a), (_, b) = (read_checkpoint(tmp_path / n / "last.safetensors") for n in ("run", "same"))
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_class_of_large_weight_is_learned_first(tmp_path: Path) -> None:
    place = Place(tmp_path, "cross_entropy")
    recalls = []
    for weights in ((1, 1, 1), (1, 1, 50)):
        place.fit(f"run{weights[2]}", epochs=1, lr=0.02, class_weights=weights)
        result = evaluate_run(tmp_path / f"run{weights[2]}", place.val)
        assert isinstance(result, ClassificationResult)
        recalls.append(result.per_class[2].correct / result.per_class[2].samples)
    assert recalls[1] == 1.0 and recalls[1] >= recalls[0]


def test_regression_without_standardisation_learns_raw_numbers(tmp_path: Path) -> None:
    place = Place(tmp_path, "mse")
    raw = place.fit("raw", epochs=1, standardize=False)
    scaled = place.fit("scaled", epochs=1)
    assert raw.history[0].loss > 1e4 > 10 > scaled.history[0].loss
    info, _ = read_checkpoint(tmp_path / "scaled" / "last.safetensors")
    assert info.settings.target_scaling is not None
    assert info.settings.target_scaling.mean == pytest.approx((300, 300, 300), abs=60)


@pytest.mark.parametrize("standardize", [True, False])
def test_a_run_that_begins_with_anothers_values_predicts_as_that_one(
    tmp_path: Path, standardize: bool
) -> None:
    place = Place(tmp_path, "mse")
    place.fit("first", epochs=4, standardize=standardize, lr=0.05 if standardize else 2.0)
    before = evaluate_run(tmp_path / "first", place.val).metrics["mae"]
    data = arrays(place.train)
    np.savez(tmp_path / "other.npz", x=data["x"], targets=3 * data["targets"] - 50)
    trainer = Trainer(place.bundle)
    trainer.start_from(tmp_path / "first")
    assert trainer.evaluate(place.val).metrics["mae"] == pytest.approx(before)
    # So small a rate changes nothing: what differs is the scaling of the other data.
    summary = trainer.fit(
        tmp_path / "other.npz", val=place.val, epochs=1, lr=1e-30, out=tmp_path / "second"
    )
    assert summary.history[0].val_metrics["mae"] == pytest.approx(before, rel=1e-4)
    assert trainer.evaluate(place.val).metrics["mae"] == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("samples", [3, 1])
def test_a_graphs_own_loss_needs_a_full_batch(tmp_path: Path, samples: int) -> None:
    place = Place(tmp_path, "output")
    few = write_task_samples(tmp_path / "few.npz", "output", samples)
    for train, val in ((few, place.val), (place.train, few)):
        with pytest.raises(DataError, match="at least 4 samples, a full batch"):
            Trainer(place.bundle).fit(train, val=val, epochs=1, lr=0.1, out=tmp_path / "run")
    data = arrays(few)
    with pytest.raises(DataError, match="full batches only"):
        Trainer(place.bundle).step({"x": data["x"], "y": data["y"]}, lr=0.1)
