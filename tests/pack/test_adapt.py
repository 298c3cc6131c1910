"""Which tensors become trainable, under which names, with which start values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from s2a_edge.pack.adapt import Adapted, Tuning, adapt
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.capture import capture
from s2a_edge.pack.graph import shape_of
from s2a_edge.spec.errors import SourceError, UsageError
from tests.pack import models
from tests.pack.compiled import adapted, compile_captured, compiled, images, run
from tests.pack.torch_twin import affine_modules

FLOAT = ir.DataType.FLOAT
RNG = np.random.default_rng(0)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _adapt(make: Callable[[GraphBuilder, ir.Value], ir.Value], *, name: str = "image",
           shape: tuple[int, ...] = (2, 4), adapters: tuple[str, ...] = ("bias", "head"),
           ) -> Adapted:
    """Adapts a backbone written node by node; three classes."""
    g = GraphBuilder()
    x = g.input(name, FLOAT, shape)
    features = make(g, x)
    return adapt(model_of([x], [features], g, "test"), (x,), features, classes=3,
                 tuning=Tuning(adapters), seed=0)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vit_scaled", "tiny_vit_zero", "tiny_resnet"])
def test_every_affine_module_gets_one_bias_under_its_name(name: str) -> None:
    made = adapted(name)
    body = [t for t in made.trainables if not t.kind.startswith("head")]
    modules = affine_modules(getattr(models, name)())
    assert sorted(t.name for t in body) == sorted(f"{m}.bias" for m in modules)
    assert {t.module for t in body} == modules
    assert all((t.kind == "norm_bias") == ("norm" in t.module) for t in body)
    assert [t.name for t in made.trainables[-2:]] == ["head.weight", "head.bias"]


def test_only_the_heads_weight_decays() -> None:
    made = adapted("tiny_vit")
    assert [t.name for t in made.trainables if t.decay] == ["head.weight"]


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vit_scaled"])
def test_biases_start_at_the_models_own_values_and_added_ones_at_zero(name: str) -> None:
    state = dict(getattr(models, name)().named_parameters())
    for t in adapted(name).trainables[:-2]:
        expected = state[t.name].detach().numpy() if t.name in state else np.zeros_like(t.initial)
        np.testing.assert_array_equal(t.initial, expected, err_msg=t.name)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vit_scaled", "tiny_vit_zero", "tiny_resnet"])
def test_the_adapted_forward_is_the_models(name: str) -> None:
    made = compiled(name, bits=32)
    x = images(made, 4)
    start = {f"param.{t.name}": t.initial for t in made.trainables}
    logits = run(made.evaluation, {made.backbone.data_inputs[0].name or "": x, **start})["logits"]
    module = getattr(models, name)()
    with torch.no_grad():
        expected = module(torch.tensor(x)).numpy() @ start["param.head.weight"].T
    # float32 through a dozen layers in another order of summation.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_equal_biases_that_were_merged_into_one_tensor_train_apart(tmp_path: Path) -> None:
    path = tmp_path / "merged.onnx"
    with warnings.catch_warnings():  # torch's exporter calls deprecated parts of torch
        warnings.simplefilter("ignore")
        program = torch.onnx.export(models.tiny_vit_zero(), (torch.zeros(1, *models.VIT_INPUT),),
                                    dynamo=True, optimize=True, verbose=False)
    assert program is not None
    ir.passes.common.DeduplicateInitializersPass()(program.model)
    program.save(str(path))
    biases = [v for v in program.model.graph.initializers.values()
              if v.const_value is not None and len(v.const_value.shape) == 1
              and v.const_value.shape[0] == 32 and not v.const_value.numpy().any()]
    assert len(biases) == 1 and len(biases[0].uses()) > 5  # the merging this test is about
    made = compile_captured(capture(str(path)), micro_batches=(2,), bits=32)
    names = [t.name for t in made.trainables]
    assert len(set(names)) == len(names)
    # One for each of the 14 affine layers; none is read by two nodes.
    assert len(names) == len(affine_modules(models.tiny_vit_zero())) + 2
    for value in made.steps[2].model.graph.inputs:
        if (value.name or "").startswith("param.") and "bias" in (value.name or ""):
            assert len({use.node for use in value.uses()}) == 1


def test_head_alone_leaves_the_backbone_as_it_is() -> None:
    made = adapted("tiny_vit", tuning=Tuning(("head",)))
    assert [t.name for t in made.trainables] == ["head.weight", "head.bias"]
    assert len(made.nodes) == len(adapted("tiny_vit").nodes)


def test_the_head_is_drawn_from_the_seed() -> None:
    def weight(seed: int) -> np.ndarray:
        g = GraphBuilder()
        x = g.input("x", FLOAT, (2, 4))
        y = g.op("Relu", x)
        made = adapt(model_of([x], [y], g, "t"), (x,), y, classes=3,
                     tuning=Tuning(("head",)), seed=seed)
        return made.trainables[0].initial

    np.testing.assert_array_equal(weight(1), weight(1))
    assert not np.array_equal(weight(1), weight(2))
    assert weight(0).shape == (3, 4)


def test_unknown_adapters_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="adalora"):
        _adapt(lambda g, x: g.op("Relu", x), adapters=("adalora", "head"))


def test_a_product_without_a_bias_gets_one_and_its_readers_see_it() -> None:
    made = _adapt(lambda g, x: g.op("Relu", g.op("MatMul", x, g.initializer("w", _floats(4, 5)))))
    (bias, *_) = made.trainables
    assert shape_of(bias.value) == (5,) and not bias.initial.any()
    relu = next(n for n in made.nodes if n.op_type == "Relu")
    source = relu.inputs[0]
    assert source is not None and source.producer() is not None
    assert source.producer().op_type == "Add"  # type: ignore[union-attr]  # checked just above


def test_a_bias_added_behind_a_product_is_the_products() -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        y = g.op("MatMul", x, g.initializer("w", _floats(4, 5)))
        return g.op("Add", y, g.initializer("fc.bias", _floats(5)))

    made = _adapt(make)
    assert [t.name for t in made.trainables] == ["fc.bias", "head.weight", "head.bias"]


def test_a_computed_addend_of_a_gemm_stays_and_a_bias_is_added() -> None:
    """Torch's addmm(residual, x, w): what is added there is no bias."""
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        return g.op("Gemm", x, g.initializer("w", _floats(4, 4)), g.op("Sigmoid", x))

    made = _adapt(make)
    gemm = next(n for n in made.nodes if n.op_type == "Gemm")
    addend = gemm.inputs[2]
    assert addend is not None and addend.producer() is not None
    assert [t.initial.shape for t in made.trainables] == [(4,), (3, 4), (3,)]


def test_a_product_of_two_activations_gets_no_bias() -> None:
    made = _adapt(lambda g, x: g.op("Gemm", x, g.op("Sigmoid", x), transB=1))
    assert [t.name for t in made.trainables] == ["head.weight", "head.bias"]


def test_a_scaled_addend_of_a_gemm_is_a_bias() -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        return g.op("Gemm", x, g.initializer("w", _floats(4, 5)),
                    g.initializer("fc.bias", _floats(1, 5)), beta=0.5)

    assert [t.initial.shape for t in _adapt(make).trainables] == [(1, 5), (3, 5), (3,)]


@pytest.mark.parametrize("reserved", ["logits", "loss", "target", "weight"])
def test_values_of_the_backbone_may_have_names_of_the_step(reserved: str) -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        y = g.op("Relu", x)
        y.name = reserved
        return g.op("Mul", y, g.initializer("scale", _floats(2, 4)))

    made = _adapt(make)
    names = [v.name for n in made.nodes for v in n.outputs]
    assert names.count("logits") == 1 and len(set(names)) == len(names)
    assert reserved == "logits" or reserved not in names
    assert made.logits.name == "logits"


def test_frozen_tensors_of_the_backbone_may_have_names_of_the_step() -> None:
    made = _adapt(lambda g, x: g.op("Add", x, g.initializer("weight", _floats(2, 4))))
    frozen = [v.name for n in made.nodes for v in n.inputs if v is not None and v.const_value]
    assert "weight" not in frozen


@pytest.mark.parametrize("reserved", ["target", "weight", "param.x", "acc.x"])
def test_an_input_with_a_name_of_the_step_is_refused(reserved: str) -> None:
    with pytest.raises(SourceError, match=f"input {reserved}"):
        _adapt(lambda g, x: g.op("Relu", x), name=reserved)
