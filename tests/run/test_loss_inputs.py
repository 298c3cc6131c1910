"""What the weights make of the loss: PyTorch's means over an effective batch, however it is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.manifest import Task
from s2a_edge.spec.task_ports import HEAD_LOSSES

C, BATCH = 4, 8
F = torch.nn.functional
WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0], np.float32)
TASKS: dict[str, Task] = {loss: Task(loss, C, ()) for loss in HEAD_LOSSES}


def graph_loss(loss: str, logits: torch.Tensor, rows: dict[str, Any]) -> torch.Tensor:
    """What the training graph computes of a micro-batch."""
    target, weight = torch.tensor(rows["target"]), torch.tensor(rows["weight"])
    if loss == "cross_entropy":
        return -(weight[:, None] * target * logits.log_softmax(-1)).sum()
    if loss == "bce":
        return (weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum()
    return (weight * (F.mse_loss if loss == "mse" else F.l1_loss)(
        logits, target, reduction="none")).sum()


def of_step(inputs: LossInputs, logits: np.ndarray, targets: np.ndarray, micro: int,
            ) -> tuple[float, np.ndarray]:
    """Loss and gradient that the micro-batches of one optimizer step add up to."""
    z = torch.tensor(logits, requires_grad=True)
    weight = inputs.sample_weight(targets)
    total = torch.zeros(())
    for start in range(0, len(targets), micro):
        part = slice(start, start + micro)
        rows = inputs.rows(targets[part], weight)
        assert all(row.dtype == np.float32 for row in rows.values())
        total = total + graph_loss(inputs.task.loss, z[part], rows)
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert z.grad is not None
    return float(total.detach()), z.grad.numpy()


def of_torch(loss: torch.nn.Module, logits: np.ndarray, target: np.ndarray,
             ) -> tuple[float, np.ndarray]:
    z = torch.tensor(logits, requires_grad=True)
    value = loss(z, torch.tensor(target))
    value.backward()
    assert z.grad is not None
    return float(value.detach()), z.grad.numpy()


def drawn(samples: int, seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, C)).astype(np.float32), rng


def assert_same(got: tuple[float, np.ndarray], expected: tuple[float, np.ndarray],
                factor: float = 1.0) -> None:
    assert got[0] == pytest.approx(factor * expected[0], rel=1e-5)
    np.testing.assert_allclose(got[1], factor * expected[1], rtol=1e-4, atol=1e-7)


@settings(max_examples=40)
@given(st.integers(1, BATCH), st.integers(1, BATCH), st.sampled_from([0.0, 0.1, 1.0]),
       st.booleans(), st.integers(0, 100))
def test_cross_entropy_is_torchs_over_the_step(samples: int, micro: int, smoothing: float,
                                               weighted: bool, seed: int) -> None:
    logits, rng = drawn(samples, seed)
    targets = rng.integers(0, C, samples)
    weights = WEIGHTS if weighted else None
    got = of_step(LossInputs(TASKS["cross_entropy"], BATCH, smoothing, weights), logits, targets,
                  micro)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=smoothing,
                                       weight=torch.tensor(weights) if weighted else None)
    # A last step of fewer samples counts in proportion.
    assert_same(got, of_torch(theirs, logits, targets), samples / BATCH)


@settings(max_examples=40)
@given(st.integers(1, BATCH), st.integers(1, BATCH), st.booleans(), st.integers(0, 100))
def test_binary_cross_entropy_is_torchs_over_the_step(samples: int, micro: int, weighted: bool,
                                                      seed: int) -> None:
    logits, rng = drawn(samples, seed)
    targets = rng.integers(0, 2, (samples, C)).astype(np.uint8)
    weights = WEIGHTS if weighted else None
    got = of_step(LossInputs(TASKS["bce"], BATCH, class_weights=weights), logits, targets, micro)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights) if weighted else None)
    assert_same(got, of_torch(theirs, logits, targets.astype(np.float32)), samples / BATCH)


def test_binary_cross_entropy_smooths_towards_one_half_and_takes_probabilities() -> None:
    logits, rng = drawn(BATCH)
    targets = rng.uniform(0, 1, (BATCH, C)).astype(np.float32)
    inputs = LossInputs(TASKS["bce"], BATCH, 0.2, WEIGHTS)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHTS))
    assert_same(of_step(inputs, logits, targets, 3), of_torch(theirs, logits, 0.8 * targets + 0.1))


def test_labels_of_weight_zero_count_where_they_are_off() -> None:
    weights = np.array([0, 1, 1, 1], np.float32)
    rows = LossInputs(TASKS["bce"], 1, class_weights=weights).rows(
        np.array([[1, 1, 0, 0]], np.uint8), 1.0)
    assert rows["weight"].tolist() == [[0, 0.25, 0.25, 0.25]]
    assert rows["target"].tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(("loss", "theirs"), [("mse", torch.nn.MSELoss()),
                                              ("l1", torch.nn.L1Loss())])
@pytest.mark.parametrize("micro", [1, 3, BATCH])
def test_regression_is_torchs_of_standardised_targets(loss: str, theirs: torch.nn.Module,
                                                      micro: int) -> None:
    logits, rng = drawn(BATCH)
    targets = (100 + 7 * rng.standard_normal((BATCH, C))).astype(np.float32)
    scaling = TargetScaling.of(targets)
    got = of_step(LossInputs(TASKS[loss], BATCH, scaling=scaling), logits, targets, micro)
    assert_same(got, of_torch(theirs, logits, scaling.apply(targets)))
    raw = of_step(LossInputs(TASKS[loss], BATCH), logits, targets, micro)
    assert_same(raw, of_torch(theirs, logits, targets))


def test_a_step_of_unweighted_classes_alone_teaches_nothing() -> None:
    inputs = LossInputs(TASKS["cross_entropy"], 2, class_weights=np.array([0, 1, 1, 1], np.float32))
    logits, _ = drawn(2)
    loss, gradient = of_step(inputs, logits, np.array([0, 0]), 1)
    assert loss == 0 and not gradient.any()


def test_a_given_loss_is_averaged_over_the_micro_batches() -> None:
    inputs = LossInputs(Task("output", 0, (), "loss"), BATCH)
    targets = np.zeros((BATCH, 0), np.float32)
    rows = inputs.rows(targets[:2], inputs.sample_weight(targets))
    assert list(rows) == ["loss_scale"]
    assert (rows["loss_scale"].shape, float(rows["loss_scale"])) == ((), 2 / BATCH)
