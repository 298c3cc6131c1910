"""Gradients of every adapter on small models, against the same adapters in PyTorch."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.layout import channel_axis
from tests.pack import models
from tests.pack.compiled import (
    Arrays,
    batch_of,
    captured,
    compile_captured,
    compiled,
    parameters,
    run,
)
from tests.pack.torch_adapters import KINDS
from tests.pack.torch_twin import TorchTwin, norm_after
from tests.parity.tolerances import EXACT, body, cosine, relative_errors

REDUCE = 4
SETS = [("lrp",), ("lsb",), ("bias", "lrp", "lsb")]
MODELS = ["tiny_vit", "tiny_vit_scaled", "tiny_resnet"]
CASES = [*((name, adapters) for name in MODELS for adapters in SETS),
         *((name, ("lora", "bias")) for name in MODELS[:2])]
# 1 - cosine over all trainables that 4 bits may turn the gradient by; measured: 0.014 for a side
# branch alone (which the class token's row of it has to carry), 0.006 for all three adapters,
# 0.008 for full tuning.
TURNED = 0.02


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


@pytest.mark.parametrize(("name", "adapters"), CASES)
def test_gradients_equal_autograd(name: str, adapters: tuple[str, ...]) -> None:
    exact = _exact(name, adapters)
    assert all(g.any() for g in exact.values())
    errors = relative_errors(_ours(name, adapters, 32), exact)
    assert errors.keys() == exact.keys()
    assert max(errors.values()) < EXACT["tiny"], errors


@pytest.mark.parametrize(("name", "adapters"), CASES)
def test_at_4_bits_the_direction_holds(name: str, adapters: tuple[str, ...]) -> None:
    exact, got = body(_exact(name, adapters)), _ours(name, adapters, 4)
    assert 1 - cosine(got, exact) < TURNED


def _full(name: str) -> Arrays:
    """PyTorch's gradients of every parameter, in our shapes; BatchNorm counts as folded."""
    made = _made(name, ("full",), 32)
    data = batch_of(made, 4)
    x = data[made.backbone.data_inputs[0].name or ""]
    module = getattr(models, name)()
    twin = TorchTwin(module, [t for t in made.trainables if t.module == "head"], x)
    module.requires_grad_(True)
    head = twin.gradients(x, data["target"], data["weight"])
    norms, named = norm_after(module, torch.tensor(x)), dict(module.named_modules())
    found: Arrays = {}
    for parameter, value in module.named_parameters():
        owner, _, role = parameter.rpartition(".")
        assert value.grad is not None
        gradient = value.grad.numpy()
        if isinstance(named[owner], torch.nn.Linear) and role == "weight":
            gradient = gradient.T
        if owner in norms:  # our kernel is the product with the norm's factor
            norm = named[norms[owner]]
            factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
            gradient = gradient / factor.reshape(-1, *[1] * (gradient.ndim - 1))
            found[f"{owner}.bias"] = norm.bias.grad.numpy()
        if owner not in norms.values():
            found[parameter] = gradient
    return {**found, **head}


@pytest.mark.parametrize("name", MODELS)
def test_full_tuning_equals_autograd(name: str) -> None:
    exact = _full(name)
    got = _ours(name, ("full",), 32)
    assert got.keys() == exact.keys()
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in exact.items()}
    errors = relative_errors(got, exact)
    assert max(errors.values()) < EXACT["tiny"], errors
    assert 1 - cosine(_ours(name, ("full",), 4), body(exact)) < TURNED


def test_a_side_branch_pools_odd_sizes_as_pytorch_does() -> None:
    made = compile_captured(captured("tiny_resnet", input_shape=(3, 28, 28)), bits=32,
                            adapters=("lsb",), reduce=REDUCE, rank=3)
    ends = [shape_of(block.output)[2:] for block in made.adapted.blocks]
    assert ends == [(7, 7), (4, 4), (4, 4)]
    data, values = batch_of(made, 4), _values(made)
    x = data[made.backbone.data_inputs[0].name or ""]
    twin = TorchTwin(models.tiny_resnet(), made.trainables, x, values=values, reduce=REDUCE)
    exact = twin.gradients(x, data["target"], data["weight"])
    feeds = {**data, **parameters(made), **{f"param.{k}": v for k, v in values.items()}}
    outputs = run(made.steps[4].model, feeds)
    got = {name: outputs[f"acc_out.{name}"] for name in values}
    assert max(relative_errors(got, exact).values()) < EXACT["tiny"]


def test_lora_keeps_the_layers_inputs_and_the_others_do_not() -> None:
    def kept(adapters: tuple[str, ...]) -> int:
        made = _made("tiny_vit", adapters, 4)
        return sum(s.stored_bytes for s in made.steps[4].saved)

    assert kept(("bias", "lrp")) == kept(("bias",))
    assert kept(("lora", "bias")) > 1.3 * kept(("bias",))


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("name", ["tiny_vit_scaled", "tiny_resnet"])
def test_a_side_branch_keeps_its_share_of_the_blocks_features(name: str, bits: int) -> None:
    made = _made(name, ("lsb",), bits)
    saved = made.steps[4].saved
    for block in made.adapted.blocks:
        mine = [s for s in saved if s.module == f"{block.name}.lsb"]
        kept = [s for s in mine if s.kind == "activation" and s.codec != "recompute"]
        assert len(kept) == 1
        assert math.prod(kept[0].shape) * REDUCE <= math.prod(shape_of(block.input))
        mask = [s for s in mine if s.kind == "mask"]
        # One bit for each hidden value, of which there are rank in a token.
        assert len(mask) == 1 and math.prod(mask[0].shape) == 3 * math.prod(
            kept[0].shape) // kept[0].shape[channel_axis(block.input)]
