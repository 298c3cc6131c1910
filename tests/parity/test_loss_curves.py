"""Ten steps of training: our graphs in ONNX Runtime against a PyTorch loop on the same data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.optimizer import STATES
from tests.pack import models
from tests.pack.compiled import batch_of, compiled, run, session
from tests.pack.torch_twin import TorchTwin
from tests.pack.updating import Update
from tests.parity.tolerances import COMPRESSED_CURVE, CURVE

STEPS = 10
ADAMW = {"lr": 5e-3, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
SGD = {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9}
SETTINGS = {"adamw": ADAMW, "sgd": SGD}
MAX_NORM = 1.0


def _batches(made: Compiled) -> list[dict[str, np.ndarray]]:
    """Three batches over and over, so that there is something to learn."""
    return [batch_of(made, 4, seed=step % 3) for step in range(STEPS)]


def _ours(made: Compiled, kind: str) -> tuple[list[float], dict[str, np.ndarray]]:
    train, update = session(made.steps[4].model), Update(made.trainables, kind)
    parameters = {f"param.{t.name}": t.initial for t in made.trainables}
    zeros = {f"acc.{t.name}": np.zeros_like(t.initial) for t in made.trainables}
    states = {f"{s}.{t.name}": np.zeros_like(t.initial) for t in made.trainables
              for s in STATES[kind]}
    losses = []
    for number, batch in enumerate(_batches(made), start=1):
        made_here = run(train, {**batch, **parameters, **zeros})
        losses.append(float(made_here["loss"]))
        scalars: dict[str, Any] = {**SETTINGS[kind], "max_norm": MAX_NORM}
        if kind == "adamw":
            scalars |= {f"correction{n}": 1 - scalars[f"beta{n}"] ** number for n in (1, 2)}
        feeds = {**parameters, **states,
                 **{k.replace("_out.", "."): v for k, v in made_here.items() if "acc_out" in k}}
        updated = update(feeds, scalars)
        parameters = {k: updated[k] for k in parameters}
        states = {k: updated[k] for k in states}
    return losses, parameters


def _torchs(name: str, made: Compiled, kind: str) -> tuple[list[float], TorchTwin]:
    batches = _batches(made)
    image = made.backbone.data_inputs[0].name or ""
    twin = TorchTwin(getattr(models, name)(), made.trainables, batches[0][image])
    settings = SETTINGS[kind]
    decayed = {t.name for t in made.trainables if t.decay}
    groups = [{"params": [p for n, p in twin.offsets.items() if (n in decayed) == decays],
               "weight_decay": settings["weight_decay"] if decays else 0.0}
              for decays in (True, False)]
    optimizer: torch.optim.Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings["lr"], eps=settings["eps"],
                                      betas=(settings["beta1"], settings["beta2"]))
    else:
        optimizer = torch.optim.SGD(groups, lr=settings["lr"], momentum=settings["momentum"])
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = twin.loss(batch[image], batch["target"], batch["weight"])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(twin.offsets.values(), MAX_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, twin


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vit_scaled", "tiny_resnet"])
def test_ten_steps_follow_torchs(name: str, kind: str) -> None:
    made = compiled(name, bits=32)
    losses, parameters = _ours(made, kind)
    expected, twin = _torchs(name, made, kind)
    np.testing.assert_allclose(losses, expected, rtol=CURVE[kind])
    assert losses[9] < losses[0]  # batch 0 again: it has learned something
    if kind == "sgd":
        for t in made.trainables:
            offset = twin.offsets[t.name].detach().numpy()
            start = 0 if t.kind.startswith("head") else t.initial
            np.testing.assert_allclose(parameters[f"param.{t.name}"], start + offset,
                                       rtol=1e-4, atol=1e-5, err_msg=t.name)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_ten_steps_with_compressed_saves_stay_near(kind: str, bits: int) -> None:
    exact, _ = _ours(compiled("tiny_vit", bits=32), kind)
    losses, _ = _ours(compiled("tiny_vit", bits=bits), kind)
    assert losses[0] == pytest.approx(exact[0], rel=1e-6)  # the forward is not compressed
    np.testing.assert_allclose(losses, exact, rtol=COMPRESSED_CURVE[bits])
    assert losses[9] < losses[0]
