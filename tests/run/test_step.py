from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import DataError, NonFiniteLossError
from tests.run import toy_reference
from tests.run.toy_bundle import DECAYED, toy_samples, write_toy_bundle
from tests.run.toy_graphs import FROZEN

# float32 against float64 over ten steps of a five-unit network: a few units in the last place
# per step.
RTOL, ATOL = 2e-5, 2e-6


@pytest.fixture(scope="module")
def all_sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles by optimizer, with micro-batches 1, 2, 3 and 4 for an effective batch of 4."""
    folder = tmp_path_factory.mktemp("sizes")
    return {
        optimizer: write_toy_bundle(
            folder / optimizer, micro_batches=(1, 2, 3, 4), optimizer=optimizer
        )
        for optimizer in ("adamw", "sgd")
    }


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4])
def test_any_micro_batch_gives_the_reference_step(
    all_sizes: dict[str, Path], optimizer: str, micro_batch: int
) -> None:
    trainer = Trainer(all_sizes[optimizer], micro_batch=micro_batch)
    settings = Hyperparameters(weight_decay=0.1 if optimizer == "adamw" else 0, max_norm=0.5)
    update = {
        "adamw": toy_reference.AdamW(DECAYED, weight_decay=0.1, max_norm=0.5).update,
        "sgd": toy_reference.Sgd().update,
    }[optimizer]
    if optimizer == "sgd":
        settings = Hyperparameters()
    frozen = trainer.bundle.weights()[FROZEN].astype(np.float64)
    params = {n: v.astype(np.float64) for n, v in trainer.state.read("param").items()}
    x, labels = toy_samples(38)
    for start in range(0, 38, 4):  # the last step has two samples
        rows, onehot = slice(start, start + 4), np.eye(3)[labels[start : start + 4]]
        result = trainer.step({"x": x[rows]}, labels[rows], lr=0.05, hyperparameters=settings)
        x64 = x[rows].astype(np.float64)
        losses = toy_reference.cross_entropy(toy_reference.logits_of(frozen, params, x64), onehot)
        grads = toy_reference.gradients(frozen, params, x64, onehot, effective_batch=4)
        assert result.samples == len(onehot)
        assert result.loss == pytest.approx(losses.mean(), rel=RTOL, abs=ATOL)
        assert result.grad_norm == pytest.approx(toy_reference.norm(grads), rel=RTOL, abs=ATOL)
        params = update(params, grads, 0.05)
    for name, values in trainer.state.read("param").items():
        np.testing.assert_allclose(values, params[name], rtol=RTOL, atol=ATOL)


def test_soft_labels_are_taken_as_they_are(toy: Path) -> None:
    x, labels = toy_samples(4)
    hard, soft = Trainer(toy), Trainer(toy)
    one = hard.step({"x": x}, labels, lr=0.1)
    two = soft.step({"x": x}, np.eye(3, dtype=np.float32)[labels], lr=0.1)
    assert one == two


def test_correct_samples_are_counted_before_the_update(toy: Path) -> None:
    trainer = Trainer(toy)
    x, labels = toy_samples(4)
    frozen = trainer.bundle.weights()[FROZEN].astype(np.float64)
    params = {n: v.astype(np.float64) for n, v in trainer.state.read("param").items()}
    expected = toy_reference.logits_of(frozen, params, x.astype(np.float64)).argmax(axis=1)
    result = trainer.step({"x": x}, labels, lr=0.1)
    assert result.correct == int((expected == labels).sum())
    assert result.accuracy == result.correct / 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 3])
def test_a_loss_that_is_not_finite_changes_nothing(toy: Path, bad: float, row: int) -> None:
    trainer = Trainer(toy)
    x, labels = toy_samples(4)
    trainer.step({"x": x}, labels, lr=0.1)
    before = trainer.state.snapshot()
    broken = x.copy()
    broken[row, 0] = bad
    with pytest.raises(NonFiniteLossError, match=r"step 2: expected a finite loss"):
        trainer.step({"x": broken}, labels, lr=0.1)
    assert all(np.array_equal(trainer.state.snapshot()[k], v) for k, v in before.items())
    # Nor do gradients of the earlier micro-batches stay behind.
    untouched = Trainer(toy)
    untouched.step({"x": x}, labels, lr=0.1)
    assert trainer.step({"x": x}, labels, lr=0.1) == untouched.step({"x": x}, labels, lr=0.1)


def test_a_gradient_that_is_not_finite_changes_nothing(toy: Path) -> None:
    trainer = Trainer(toy)
    x, _ = toy_samples(4)
    before = trainer.state.snapshot()
    # The loss is finite, the square of the gradient overflows float32.
    huge = np.tile(np.where(x[0] > 0, 1e25, -1e25).astype(np.float32), (4, 1))
    with pytest.raises(NonFiniteLossError, match="finite gradient norm"):
        trainer.step({"x": huge}, np.array([0, 1, 2, 0]), lr=0.1)  # two at least are wrong
    assert all(np.array_equal(trainer.state.snapshot()[k], v) for k, v in before.items())


X, LABELS = toy_samples(4)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        ({"x": X}, LABELS[:3], r"class indices 0..2 \[4\].* got int64\[3\]"),
        ({"x": np.float32(1)}, LABELS, r"x \[0, 6\], got x \[\]"),
        ({"x": X[:0]}, LABELS[:0], "1 to 4 samples"),
        ({"x": np.tile(X, (2, 1))}, np.tile(LABELS, 2), "1 to 4 samples"),
        ({"y": X}, LABELS, r"got y \[4, 6\]"),
        ({}, LABELS, "got nothing"),
        ({"x": X[:, :5]}, LABELS, r"got x \[4, 5\]"),
        ({"x": X}, np.array([0, 1, 2, 3]), "class indices 0..2 .* from 0 to 3"),
        ({"x": X}, np.array([0, 1, 2, -1]), "from -1 to 2"),
        ({"x": X}, np.array([0.0, 1.0, 2.0, 1.0]), "got float64"),
        ({"x": X}, np.zeros((4, 2), np.float32), r"soft labels \[4, 3\]"),
    ],
)
def test_samples_that_do_not_suit_the_bundle_are_refused(
    toy: Path, inputs: Any, labels: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Trainer(toy).step(inputs, labels, lr=0.1)
