"""Gradients of every adapter on small models, against the same adapters in PyTorch."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from s2a_edge.pack.compile import Compiled
from tests.pack import models
from tests.pack.compiled import Arrays, batch_of, compiled, parameters, run
from tests.pack.torch_adapters import KINDS
from tests.pack.torch_twin import TorchTwin
from tests.parity.tolerances import EXACT, body, cosine, relative_errors

REDUCE = 4
SETS = [("lrp",), ("lsb",), ("bias", "lrp", "lsb")]
MODELS = ["tiny_vit", "tiny_vit_scaled", "tiny_resnet"]


def _values(made: Compiled) -> Arrays:
    """Start values; what starts at zero is drawn, or half of the gradients would be zero."""
    rng = np.random.default_rng(5)
    return {t.name: (0.3 * rng.standard_normal(t.initial.shape).astype(np.float32)
                     if t.kind in KINDS and not t.initial.any() else t.initial)
            for t in made.trainables}


def _made(name: str, adapters: tuple[str, ...], bits: int, attention: str = "store") -> Compiled:
    return compiled(name, bits=bits, attention=attention, adapters=adapters, reduce=REDUCE, rank=3)


@functools.cache
def _exact(name: str, adapters: tuple[str, ...]) -> Arrays:
    made = _made(name, adapters, 32)
    data = batch_of(made, 4)
    x = data[made.backbone.data_inputs[0].name or ""]
    twin = TorchTwin(getattr(models, name)(), made.trainables, x, values=_values(made),
                     reduce=REDUCE, scale=8.0 / 3)
    return twin.gradients(x, data["target"], data["weight"])


def _ours(name: str, adapters: tuple[str, ...], bits: int) -> Arrays:
    made = _made(name, adapters, bits)
    feeds = {**batch_of(made, 4), **parameters(made)}
    feeds.update({f"param.{k}": v for k, v in _values(made).items()})
    outputs = run(made.steps[4].model, feeds)
    return {t.name: outputs[f"acc_out.{t.name}"] for t in made.trainables}


@pytest.mark.parametrize("adapters", SETS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_autograd(name: str, adapters: tuple[str, ...]) -> None:
    exact = _exact(name, adapters)
    assert all(g.any() for g in exact.values())
    errors = relative_errors(_ours(name, adapters, 32), exact)
    assert errors.keys() == exact.keys()
    assert max(errors.values()) < EXACT["tiny"], errors


@pytest.mark.parametrize("adapters", SETS)
@pytest.mark.parametrize("name", MODELS)
def test_at_4_bits_the_direction_holds(name: str, adapters: tuple[str, ...]) -> None:
    exact, got = body(_exact(name, adapters)), _ours(name, adapters, 4)
    print(name, adapters, 1 - cosine(got, exact), relative_errors(got, exact))
    assert 1 - cosine(got, exact) < 0.02
