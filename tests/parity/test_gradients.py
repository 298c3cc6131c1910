"""Gradients of the small models: exact ones against PyTorch, compressed ones within bounds."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest

from tests.pack import models
from tests.pack.compiled import Arrays, batch_of, compiled, gradients
from tests.pack.torch_twin import TorchTwin
from tests.parity.tolerances import COMPRESSED, EXACT, body, cosine, relative_errors

MODELS = ["tiny_vit", "tiny_vit_scaled", "tiny_vit_zero", "tiny_resnet"]
ATTENTIVE = MODELS[:2]


@functools.cache
def _exact(name: str, seed: int) -> Arrays:
    """PyTorch's gradients."""
    made = compiled(name, bits=32)
    data = batch_of(made, 4, seed)
    x = data[made.backbone.data_inputs[0].name or ""]
    twin = TorchTwin(getattr(models, name)(), made.trainables, x)
    return twin.gradients(x, data["target"], data["weight"])


def _ours(name: str, seed: int, bits: int, attention: str = "store") -> Arrays:
    made = compiled(name, bits=bits, attention=attention)
    return gradients(made, made.steps[4].model, batch_of(made, 4, seed))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "attention"), [
    *((name, "store") for name in MODELS), *((name, "recompute") for name in ATTENTIVE)])
def test_uncompressed_gradients_equal_autograd(name: str, attention: str, seed: int) -> None:
    exact = _exact(name, seed)
    assert all(g.any() for g in exact.values())
    errors = relative_errors(_ours(name, seed, 32, attention), exact)
    assert max(errors.values()) < EXACT["tiny"], errors


def test_the_loss_equals_torchs() -> None:
    from tests.pack.compiled import parameters, run

    for name in MODELS:
        made = compiled(name, bits=32)
        data = batch_of(made, 4)
        x = data[made.backbone.data_inputs[0].name or ""]
        twin = TorchTwin(getattr(models, name)(), made.trainables, x)
        expected = float(twin.loss(x, data["target"], data["weight"]).detach())
        got = run(made.steps[4].model, {**data, **parameters(made)})
        assert float(got["loss"]) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(got["logits"], twin.logits(x).detach().numpy(), rtol=1e-4,
                                   atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("attention", ["store", "recompute"])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_compressed_gradients_stay_within_measured_bounds(name: str, attention: str, bits: int,
                                                          ) -> None:
    exact = body(_exact(name, 0))
    got = _ours(name, 0, bits, attention)
    measured = COMPRESSED[attention, bits]
    errors = relative_errors(got, exact)
    worst = max(errors, key=lambda n: errors[n])
    assert errors[worst] < measured.each.bound, worst
    assert 1 - cosine(got, exact) < measured.angle.bound


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_relu_and_max_pool_lose_nothing(bits: int) -> None:
    errors = relative_errors(_ours("tiny_resnet", 0, bits), _exact("tiny_resnet", 0))
    assert max(errors.values()) < EXACT["tiny"]


@pytest.mark.parametrize("attention", ["store", "recompute"])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_more_bits_mean_less_error(name: str, attention: str) -> None:
    exact = body(_exact(name, 0))
    angles, medians = [], []
    for bits in (2, 4, 8, 16, 32):
        got = _ours(name, 0, bits, attention)
        angles.append(1 - cosine(got, exact))
        medians.append(float(np.median(list(relative_errors(got, exact).values()))))
    assert all(coarse > 1.5 * fine for coarse, fine in pairwise(medians)), medians
    assert all(coarse > fine for coarse, fine in pairwise(angles)), angles


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_head_and_the_last_norm_are_exact_at_any_setting(bits: int) -> None:
    errors = relative_errors(_ours("tiny_vit", 0, bits), _exact("tiny_vit", 0))
    for name in ("head.weight", "head.bias", "norm.bias"):
        assert errors[name] < EXACT["tiny"]
