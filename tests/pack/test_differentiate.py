"""The engine: where gradients flow, sums at fan-out, accumulation, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.adapt import Adapted, Tuning, adapt
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.coverage import gradient_values, require_gradients, require_rules
from s2a_edge.pack.differentiate import differentiate, vector_jacobian_product
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.forward_graphs import forward_model
from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.slice_products import slice_products
from s2a_edge.spec.errors import SourceError, UnsupportedOperatorError
from tests.pack.compiled import adapted, batch_of, check_static, compiled, parameters, run

FLOAT = ir.DataType.FLOAT
EXACT = Precision(32, "store")
Make = Callable[[GraphBuilder, ir.Value], ir.Value]


def _backbone(make: Make, shape: tuple[int, ...] = (2, 4), adapters: tuple[str, ...] = ("bias",),
              ) -> Adapted:
    g = GraphBuilder()
    x = g.input("x", FLOAT, shape)
    features = make(g, x)
    return adapt(model_of([x], [features], g, "test"), (x,), features, classes=3,
                 tuning=Tuning(adapters), seed=0)


def _linear(g: GraphBuilder, x: ir.Value, module: str) -> ir.Value:
    """A frozen linear layer, to stand for something that trains."""
    g.module = module
    width = shape_of(x)[-1]
    weight = np.random.default_rng(len(g.nodes)).standard_normal((width, width))
    return g.op("MatMul", x, g.initializer(f"{module}.weight", weight.astype(np.float32)))


def test_gradients_flow_between_trainables_and_outputs_only() -> None:
    g = GraphBuilder()
    x, w = g.input("x", FLOAT, (2,)), g.input("w", FLOAT, (2,))
    below = g.op("Neg", x)
    joined = g.op("Add", below, w)
    out = g.op("Tanh", joined)
    aside = g.op("Exp", joined)
    flowing = gradient_values(g.nodes, [w], [out])
    assert flowing == {w, joined, out}
    assert aside not in flowing and below not in flowing


def test_fan_out_is_summed() -> None:
    """d/dx (x·x + tanh x + x) = 2x + 1 - tanh² x + 1: five uses of one value."""
    g = GraphBuilder()
    x = g.input("x", FLOAT, (7,))
    out = g.op("Add", g.op("Add", g.op("Mul", x, x), g.op("Tanh", x)), x)
    step = vector_jacobian_product(g.nodes, [x], [out], EXACT)
    feed = np.linspace(-2, 2, 7, dtype=np.float32)
    got = run(step.model, {"x": feed, "dy_0": np.ones(7, np.float32)})["d_x"]
    np.testing.assert_allclose(got, 2 * feed + 2 - np.tanh(feed) ** 2, rtol=1e-6)


def test_every_use_of_several_outputs_counts() -> None:
    """Split with an output that nobody reads, and one read twice."""
    g = GraphBuilder()
    x = g.input("x", FLOAT, (2, 6))
    a, _, c = g.multi("Split", [x, g.constant([2, 2, 2])], 3, axis=1)
    out = g.op("Add", g.op("Mul", a, c), c)
    step = vector_jacobian_product(g.nodes, [x], [out], EXACT)
    feed = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    got = run(step.model, {"x": feed, "dy_0": np.ones((2, 2), np.float32)})["d_x"]
    a_in, c_in = feed[:, :2], feed[:, 4:]
    np.testing.assert_allclose(got, np.concatenate([c_in, 0 * a_in, a_in + 1], 1), rtol=1e-6)


def test_gradients_are_added_to_the_accumulators() -> None:
    made = compiled("tiny_vit", bits=32)
    feeds = {**batch_of(made, 4), **parameters(made)}
    once = run(made.steps[4].model, feeds)
    twice = run(made.steps[4].model, {**feeds, **{
        f"acc.{t.name}": once[f"acc_out.{t.name}"] for t in made.trainables}})
    for t in made.trainables:
        np.testing.assert_allclose(twice[f"acc_out.{t.name}"], 2 * once[f"acc_out.{t.name}"],
                                   rtol=1e-6)


def test_micro_batches_add_up_to_the_batch() -> None:
    """Two halves with the weights of the whole give its gradient; padding counts for nothing."""
    made = compiled("tiny_resnet", bits=32, micro_batches=(2, 4))
    whole = batch_of(made, 4)
    image = made.backbone.data_inputs[0].name or ""
    feeds = {**whole, **parameters(made)}
    expected = run(made.steps[4].model, feeds)
    total = parameters(made)
    losses = 0.0
    for part in (slice(0, 2), slice(2, 4)):
        out = run(made.steps[2].model, {**{k: v[part] for k, v in whole.items()}, **total})
        total |= {k.replace("_out", ""): v for k, v in out.items() if k.startswith("acc_out.")}
        losses += float(out["loss"])
    assert losses == pytest.approx(float(expected["loss"]), rel=1e-6)
    for t in made.trainables:
        want = expected[f"acc_out.{t.name}"]
        np.testing.assert_allclose(total[f"acc.{t.name}"], want, rtol=1e-4,
                                   atol=1e-6 * float(np.abs(want).max()))
    other = {**feeds, image: feeds[image].copy()}
    other[image][-1] = 1.0  # batch_of gives the last sample weight 0
    again = run(made.steps[4].model, other)
    for t in made.trainables:
        np.testing.assert_array_equal(again[f"acc_out.{t.name}"], expected[f"acc_out.{t.name}"])


def test_nothing_is_differentiated_below_the_lowest_trainable() -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        g.module = "below"
        y = g.op("Exp", g.op("Tanh", x))
        return g.op("Tanh", _linear(g, y, "layer"))

    step = differentiate(_backbone(make), EXACT)
    nodes = list(step.model.graph)
    assert sum(module_of(n) == "below" for n in nodes) == 2
    assert {s.module for s in step.saved} == {"layer", "head"}


def test_a_bias_that_leads_nowhere_else_gets_its_gradient_and_no_more() -> None:
    """The first layer's input needs no gradient: no product with its weight in the backward."""
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        return _linear(g, x, "first")

    step = differentiate(_backbone(make), EXACT)
    reading = [n for n in step.model.graph
               if any(v is not None and v.name == "first.weight" for v in n.inputs)]
    assert len(reading) == 1


def test_values_keep_the_names_of_the_backbone() -> None:
    made = slice_products(adapted("tiny_vit", 4)).adapted
    step = compiled("tiny_vit", bits=4).steps[4].model
    names = {v.name for n in step.graph for v in n.outputs}
    # Of two views in a row only the second is left.
    expected = {v.name for n in made.nodes for v in n.outputs if v.name and n.op_type != "Reshape"}
    assert expected <= names


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vit_scaled", "tiny_resnet"])
@pytest.mark.parametrize("bits", [4, 32])
def test_steps_are_static_and_fit_the_runtimes_order(name: str, bits: int) -> None:
    made = compiled(name, bits=bits)
    for model in (made.steps[4].model, made.evaluation, made.inference, made.optimizer):
        check_emitted(model)
        check_static(model)


def test_inputs_and_outputs_are_those_of_the_contract() -> None:
    made = compiled("tiny_vit", bits=4)
    graph = made.steps[4].model.graph
    names = [t.name for t in made.trainables]
    image = made.backbone.data_inputs[0].name
    assert [v.name for v in graph.inputs] == [
        image, "target", "weight", *(f"param.{n}" for n in names), *(f"acc.{n}" for n in names)]
    assert [v.name for v in graph.outputs] == [
        "loss", "logits", *(f"acc_out.{n}" for n in names)]
    shapes = {v.name: shape_of(v) for v in (*graph.inputs, *graph.outputs)}
    assert shapes["loss"] == () and shapes["logits"] == shapes["target"] == (4, 5)
    assert shapes["weight"] == (4,) and shapes[image] == (4, 3, 16, 16)
    for t in made.trainables:
        assert {shapes[f"{stem}.{t.name}"] for stem in ("param", "acc", "acc_out")} == {
            tuple(t.initial.shape)}


def test_evaluation_and_training_compute_the_same_logits() -> None:
    for name in ("tiny_vit", "tiny_resnet"):
        made = compiled(name, bits=4)
        data = batch_of(made, 4)
        start = {k: v for k, v in parameters(made).items() if k.startswith("param.")}
        image = {k: v for k, v in data.items() if k not in ("target", "weight")}
        trained = run(made.steps[4].model, {**data, **parameters(made)})["logits"]
        # The training graph applies a norm's scale behind it, the other one inside.
        np.testing.assert_allclose(run(made.evaluation, {**image, **start})["logits"], trained,
                                   rtol=1e-5, atol=1e-6)


def test_the_forward_model_reads_no_accumulators_and_saves_nothing() -> None:
    model = forward_model(adapted("tiny_vit"), "eval")
    assert not [v for v in model.graph.inputs if (v.name or "").startswith("acc.")]
    assert [v.name for v in model.graph.outputs] == ["logits"]
    kinds = {v.metadata_props.get("s2a.kind", "working") for n in model.graph for v in n.outputs}
    assert kinds == {"working"}


def _refused(make: Make, shape: tuple[int, ...] = (2, 4)) -> str:
    with pytest.raises(UnsupportedOperatorError) as error:
        require_rules(_backbone(make, shape))
    return error.value.got


def test_all_operators_without_a_rule_are_named_at_once_with_their_modules() -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        y = _linear(g, x, "stem")
        for number in range(6):
            g.module = f"blocks.{number}.mix"
            y = g.op("Asinh", y)
        g.module = "last"
        return g.op("Atan", y)

    assert _refused(make) == (
        "Asinh (ai.onnx 21) in blocks.0.mix, blocks.1.mix, blocks.2.mix, blocks.3.mix and 2 "
        "more; Atan (ai.onnx 21) in last")


def test_operators_that_gradients_do_not_pass_need_no_rule() -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        return _linear(g, g.op("Asinh", x), "layer")

    require_rules(_backbone(make))
    require_rules(_backbone(lambda g, x: g.op("Asinh", _linear(g, x, "l")),
                            adapters=("head",)))


IMAGE = (2, 4, 6, 6)


def _on(op: str, *operands: np.ndarray, outputs: int = 1, computed: bool = True,
        **attributes: Any) -> Make:
    """``op`` behind something that trains, its other operands computed or constant."""
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        y = _linear(g, x, "stem")
        given = [g.op("Identity", g.constant(o)) if computed else g.constant(o) for o in operands]
        made = g.multi(op, [y, *given], outputs, **attributes)
        read = [g.op("Cast", value, to=int(FLOAT)) for value in dict.fromkeys((made[0], made[-1]))]
        return g.op("Flatten", read[0] if len(read) == 1 else g.op("Add", *read))

    return make


KERNEL = np.ones((4, 4, 3, 3), np.float32)


@pytest.mark.parametrize(("form", "why"), [
    (_on("MaxPool", kernel_shape=[2, 2], outputs=2), "MaxPool with output"),
    (_on("AveragePool", kernel_shape=[2, 2], dilations=[2, 2]), "AveragePool with dilations"),
    (_on("Clip", np.asarray(0.5, np.float32)), "Clip with computed"),
    (_on("Gather", np.array([0, 1]), axis=1), "Gather with computed"),
    (_on("Conv", KERNEL), "Conv with a computed kernel"),
])
def test_forms_that_a_rule_does_not_cover_are_refused(form: Make, why: str) -> None:
    assert why in _refused(form, IMAGE)


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_borders_are_not_taken_off_and_mirrored_at_once(mode: str) -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        return g.op("Pad", _linear(g, x, "stem"), g.constant([0, -1, 0, 1]), mode=mode)

    assert "Pad with negative pads" in _refused(make)


def test_no_gradient_passes_a_comparison_or_an_index() -> None:
    def make(g: GraphBuilder, x: ir.Value) -> ir.Value:
        y = _linear(g, x, "stem")
        return g.op("Where", g.op("Less", y, g.constant(0.0)), g.op("Neg", y), y)

    require_rules(_backbone(make, (2, 4)))  # Less has no rule, and needs none

    def without(g: GraphBuilder, x: ir.Value) -> ir.Value:
        return g.op("Cast", g.op("Less", _linear(g, x, "stem"), g.constant(0.0)), to=int(FLOAT))

    with pytest.raises(SourceError, match="no gradient for stem"):
        require_gradients(_backbone(without, (2, 4)))
