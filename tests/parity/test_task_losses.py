"""Ten steps of every loss on a head: targets as a run feeds them, against PyTorch's own losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.optimizer import STATES
from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.manifest import Task
from s2a_edge.spec.task_ports import LOSS, Loss
from tests.pack import models
from tests.pack.compiled import LABELS, compiled, images, run, session
from tests.pack.torch_twin import TorchTwin
from tests.pack.updating import Update
from tests.parity.tolerances import COMPRESSED_CURVE, CURVE

STEPS, BATCH, MICRO, CLASSES = 10, 6, 4, len(LABELS)  # the second micro-batch of a step is ragged
WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0, 1.5], np.float32)
NUMBERS = 200 + np.array([1, 5, 10, 50, 100]) * np.random.default_rng(9).standard_normal((18, 5))
SCALING = TargetScaling.of(NUMBERS)
# Loss, what a run adds to it, and PyTorch's name for the same.
CASES: dict[str, tuple[Loss, dict[str, Any], torch.nn.Module]] = {
    "cross_entropy": ("cross_entropy", {}, torch.nn.CrossEntropyLoss()),
    "smoothed": ("cross_entropy", {"label_smoothing": 0.1},
                 torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weighted": ("cross_entropy", {"class_weights": WEIGHTS, "label_smoothing": 0.1},
                 torch.nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS), label_smoothing=0.1)),
    "bce": ("bce", {}, torch.nn.BCEWithLogitsLoss()),
    "bce weighted": ("bce", {"class_weights": WEIGHTS},
                     torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHTS))),
    "mse": ("mse", {"scaling": SCALING}, torch.nn.MSELoss()),
    "l1": ("l1", {"scaling": SCALING}, torch.nn.L1Loss()),
}


def targets_of(loss: Loss, step: int) -> np.ndarray:
    """Three batches over and over, so that there is something to learn."""
    rng = np.random.default_rng(step % 3)
    if loss == "cross_entropy":
        return rng.integers(0, CLASSES, BATCH)
    if loss == "bce":
        return rng.integers(0, 2, (BATCH, CLASSES)).astype(np.uint8)
    return NUMBERS[(step % 3) * BATCH :][:BATCH].astype(np.float32)


def ours(made: Compiled, inputs: LossInputs, kind: str, scalars: dict[str, float]) -> list[float]:
    train, update = session(made.steps[MICRO].model), Update(made.trainables, kind)
    state = {f"{role}.{t.name}": np.zeros_like(t.initial) for t in made.trainables
             for role in ("acc", *STATES[kind])}
    state |= {f"param.{t.name}": t.initial for t in made.trainables}
    name, losses = made.backbone.data_inputs[0].name or "", []
    for step in range(STEPS):
        x, targets = images(made, BATCH, seed=step % 3), targets_of(inputs.task.loss, step)
        weight, total = inputs.sample_weight(targets), 0.0
        for start in range(0, BATCH, MICRO):
            rows = inputs.rows(targets[start : start + MICRO], weight)
            data = {name: x[start : start + MICRO], **rows}
            full = {k: np.pad(v, ((0, MICRO - len(v)), *[(0, 0)] * (v.ndim - 1)))
                    for k, v in data.items()}
            given = {k: v for k, v in state.items() if k.startswith(("param.", "acc."))}
            out = run(train, {**full, **given})
            total += float(out[LOSS])
            state |= {k.replace("_out.", "."): v for k, v in out.items() if "_out." in k}
        losses.append(total)
        numbers = dict(scalars)
        if kind == "adamw":
            numbers |= {f"correction{n}": 1 - numbers[f"beta{n}"] ** (step + 1) for n in (1, 2)}
        state |= update(state, numbers)
        state |= {k: np.zeros_like(v) for k, v in state.items() if k.startswith("acc.")}
    return losses


def torchs(name: str, made: Compiled, inputs: LossInputs, loss: torch.nn.Module,
           optimizer: Any) -> list[float]:
    twin = TorchTwin(getattr(models, name)(), made.trainables, images(made, 1))
    steps = optimizer(twin.offsets.values())
    losses = []
    for step in range(STEPS):
        targets = torch.tensor(_as_torch(targets_of(inputs.task.loss, step), inputs))
        steps.zero_grad()
        value = loss(twin.logits(images(made, BATCH, seed=step % 3)), targets)
        value.backward()
        steps.step()
        losses.append(float(value.detach()))
    return losses


def _as_torch(targets: np.ndarray, inputs: LossInputs) -> np.ndarray:
    if inputs.scaling is not None:
        return inputs.scaling.apply(targets)
    return targets.astype(np.float32) if inputs.task.loss == "bce" else targets


def inputs_of(case: str) -> LossInputs:
    loss, options, _ = CASES[case]
    return LossInputs(Task(loss, CLASSES, LABELS), BATCH, **options)


SGD = {"lr": 0.02, "weight_decay": 0.0, "max_norm": 3.4e38, "momentum": 0.9}
ADAMW = {"lr": 5e-3, "weight_decay": 0.0, "max_norm": 3.4e38, "beta1": 0.9, "beta2": 0.999,
         "eps": 1e-8}


@pytest.mark.parametrize("case", list(CASES))
def test_ten_steps_follow_torchs(case: str) -> None:
    loss, _, theirs = CASES[case]
    made = compiled("tiny_vit", bits=32, loss=loss, effective_batch=BATCH)
    inputs = inputs_of(case)
    got = ours(made, inputs, "sgd", SGD)
    expected = torchs("tiny_vit", made, inputs, theirs,
                      lambda p: torch.optim.SGD(p, lr=SGD["lr"], momentum=SGD["momentum"]))
    np.testing.assert_allclose(got, expected, rtol=CURVE["sgd"])  # 3.1e-7 was seen
    assert got[9] < got[0]  # batch 0 again: it has learned something


@pytest.mark.parametrize("case", ["weighted", "bce", "mse"])
def test_ten_steps_of_adamw_follow_torchs(case: str) -> None:
    loss, _, theirs = CASES[case]
    made = compiled("tiny_resnet", bits=32, loss=loss, effective_batch=BATCH)
    inputs = inputs_of(case)
    got = ours(made, inputs, "adamw", ADAMW)
    expected = torchs("tiny_resnet", made, inputs, theirs,
                      lambda p: torch.optim.AdamW(p, lr=ADAMW["lr"], weight_decay=0.0))
    np.testing.assert_allclose(got, expected, rtol=CURVE["adamw"])  # 1.0e-6 was seen


@pytest.mark.parametrize("case", ["bce", "mse", "l1"])
def test_ten_steps_with_compressed_saves_stay_near(case: str) -> None:
    loss, inputs = CASES[case][0], inputs_of(case)
    exact, got = (ours(compiled("tiny_vit", bits=bits, loss=loss, effective_batch=BATCH), inputs,
                       "sgd", SGD) for bits in (32, 4))
    assert got[0] == pytest.approx(exact[0], rel=1e-6)  # the forward is not compressed
    np.testing.assert_allclose(got, exact, rtol=COMPRESSED_CURVE[4])  # 2.5e-4 was seen
    assert got[9] < got[0]
