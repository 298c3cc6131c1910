"""The pass to half precision: what gets which type, and what must never leave float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.graph import FLOAT32_KEY, MICROSOFT, dtype_of
from s2a_edge.pack.half.convert import computes_in, half_model
from s2a_edge.pack.half.formats import BF16, FP16, HALVES, Half
from s2a_edge.pack.half.twin import float32_twin
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.plan.rewrites import require_executed_as_written
from tests.pack.compiled import run
from tests.pack.half.steps import step

_MODELS = ["tiny_vit", "tiny_vit_scaled", "tiny_resnet"]
_FLOAT = ir.DataType.FLOAT


def _types(model: ir.Model) -> dict[str, ir.DataType]:
    return {v.name or "": dtype_of(v) for node in model.graph for v in node.outputs if v.name}


@pytest.mark.parametrize("precision", list(HALVES))
@pytest.mark.parametrize("name", _MODELS)
@pytest.mark.parametrize("bits", [4, 16, 32])
def test_every_node_in_half_has_a_kernel_and_every_port_is_float32(name: str, precision: str,
                                                                    bits: int) -> None:
    made, half = step(name, precision, bits=bits), HALVES[precision]
    for model in (made.steps[4].model, made.evaluation):
        check_emitted(model)
        # bfloat16 has no convolutions: without a backward nothing of a ResNet is in it.
        assert computes_in(model, half) or (name, precision) == ("tiny_resnet", "bf16")
        for node in model.graph:
            require_executed_as_written(node)
            floats = {dtype_of(v) for v in (*node.inputs, *node.outputs)
                      if v is not None and v.name and dtype_of(v) in (half.dtype, _FLOAT)}
            if half.dtype in floats and node.op_type != "Cast":
                assert half.computes(node), node.op_type
                assert FLOAT32_KEY not in node.metadata_props
        for value in (*model.graph.inputs, *model.graph.outputs):
            assert dtype_of(value) == _FLOAT


@pytest.mark.parametrize("name", _MODELS)
def test_products_are_in_half_but_those_of_the_head_and_of_codes(name: str) -> None:
    graph = step(name, "fp16").steps[4].model.graph
    products = [n for n in graph if (n.domain, n.op_type) in FP16.products]
    full = [n for n in products if dtype_of(n.outputs[0]) == _FLOAT]
    assert len(products) > len(full)
    packing = [n for n in full if n.op_type == "MatMul"]  # codes into words
    assert all(dtype_of(next(iter(n.outputs[0].uses())).node.outputs[0]).is_integer()
               for n in packing)
    head = {n.name for n in full} - {n.name for n in packing}
    assert len(head) == 3  # logits, and their gradients to weight and features


@pytest.mark.parametrize("name", _MODELS)
def test_gradients_are_scaled_in_between_and_added_up_in_float32(name: str) -> None:
    graph = step(name, "fp16").steps[4].model.graph
    scale = next(v for v in graph.inputs if v.name == "grad_scale")
    assert sorted(u.node.op_type for u in scale.uses()) == ["Mul", "Reciprocal"]
    for value in graph.outputs:
        if (value.name or "").startswith("acc_out."):
            node = value.producer()
            assert node is not None and all(dtype_of(v) == _FLOAT for v in node.inputs if v)
    assert all(v.name != "grad_scale" for v in step(name, "bf16").steps[4].model.graph.inputs)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_frozen_weights_are_read_as_float16_without_a_cast(name: str) -> None:
    graph = step(name, "fp16").steps[4].model.graph
    weights = [v for v in graph.initializers.values() if (v.name or "").endswith(".codes")]
    assert weights
    for value in weights:
        assert dtype_of(value) == ir.DataType.FLOAT16
        assert {u.node.op_type for u in value.uses()} <= {
            "Gemm", "MatMul", "FusedMatMul", "Conv", "ConvTranspose", "Reshape", "Add", "Concat"}


def test_the_plan_of_a_step_shrinks_and_saved_codes_stay() -> None:
    plans = {p: plan_memory(step("tiny_vit", p).steps[4].model, threads=1).plan
             for p in ("fp32", "fp16")}  # plan_memory verifies each by a replay
    assert plans["fp16"].liveness_peak_bytes < 0.65 * plans["fp32"].liveness_peak_bytes
    assert plans["fp16"].saved_bytes <= plans["fp32"].saved_bytes
    exact = {p: plan_memory(step("tiny_vit", p, bits=32).steps[4].model, threads=1).plan
             for p in ("fp32", "fp16")}
    # All but rows' deviations, which are statistics.
    assert exact["fp16"].saved_bytes < 0.52 * exact["fp32"].saved_bytes


def test_what_is_saved_as_it_is_says_its_type() -> None:
    saved = {s.codec: s.bits for s in step("tiny_vit", "fp16", bits=32).steps[4].saved}
    assert saved["float16"] == 16.0
    for one in step("tiny_vit", "fp16", bits=32).steps[4].saved:
        width = 2 if one.codec == "float16" else 4
        assert one.stored_bytes in (0, width * int(np.prod(one.shape)))


def _converted(half: Half, *ops: str, weight: np.ndarray | None = None,
               ) -> tuple[ir.Model, ir.Model]:
    """x [4, 8] through a product and then ``ops``; with ``weight``, each with it."""
    g = GraphBuilder()
    x = g.input("x", _FLOAT, (4, 8))
    y = g.op("MatMul", x, g.constant(np.eye(8, dtype=np.float32)))
    for op in ops:
        y = g.op(op, y) if weight is None else g.op(op, y, g.constant(weight))
    out = g.op("Cast", y, to=int(_FLOAT)) if dtype_of(y) != _FLOAT else y
    out.name = "y"
    model = model_of([x], [out], g, "small")
    return model, half_model(model, half)


@pytest.mark.parametrize(("op", "kept"), [("Gelu", True), ("Softmax", True), ("Exp", False),
                                          ("Log", False), ("Softplus", False), ("Relu", True)])
def test_each_operator_in_its_type(op: str, kept: bool) -> None:
    graph = _converted(FP16, op)[1].graph
    node = next(n for n in graph if n.op_type == op)
    assert (dtype_of(node.outputs[0]) == ir.DataType.FLOAT16) == kept


@pytest.mark.parametrize("weight", [np.full(8, 1e-6, np.float32), np.full(8, 7e4, np.float32)])
def test_a_factor_that_float16_cannot_hold_keeps_its_node_in_float32(weight: np.ndarray) -> None:
    model, made = _converted(FP16, "Mul", weight=weight)
    node = next(n for n in made.graph if n.op_type == "Mul")
    assert dtype_of(node.outputs[0]) == _FLOAT
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    np.testing.assert_allclose(run(made, {"x": x})["y"], run(model, {"x": x})["y"], rtol=2e-3)


@pytest.mark.parametrize("half", [FP16, BF16], ids=["fp16", "bf16"])
def test_a_row_that_is_masked_as_a_whole_stays_finite(half: Half) -> None:
    """As in float32, where a mask of -inf has become the lowest number."""
    lowest = np.full((1, 8), np.finfo(np.float32).min, np.float32)
    _, made = _converted(half, "Add", weight=lowest)
    mask = next(n for n in made.graph if n.op_type == "Add").inputs[1]
    assert mask is not None and mask.const_value is not None
    number = mask.const_value.numpy().astype(np.float32)
    with np.errstate(over="ignore"):
        scores = np.linspace(-1000, 1000, 8, dtype=np.float32).astype(number.dtype) + number
    assert np.isfinite(scores.astype(half.dtype.numpy()).astype(np.float32)).all()


def test_statistics_are_saturated_and_gradients_are_not() -> None:
    """1/σ of a row of zeros must not be infinity; a gradient must, so that the step is skipped."""
    for kind, expected in (("working", 65504.0), ("gradients", np.inf)):
        g = GraphBuilder()
        x, r = g.input("x", _FLOAT, (4, 8)), g.input("r", _FLOAT, (4, 1))
        g.kind = kind
        large = g.op("Reciprocal", r)
        y = g.op("Mul", g.op("MatMul", x, g.constant(np.eye(8, dtype=np.float32))), large)
        y.name = "y"
        made = half_model(model_of([x, r], [y], g, "statistic"), FP16)
        # The runtime itself elides roundings between its casts.
        got = run(float32_twin(made, FP16), {"x": np.ones((4, 8), np.float32),
                                             "r": np.full((4, 1), 1e-6, np.float32)})
        assert got["y"].max() == expected


def test_a_transposed_product_is_converted_too() -> None:
    g = GraphBuilder()
    x = g.input("x", _FLOAT, (4, 8))
    y = g.op("FusedMatMul", x, x, domain=MICROSOFT, transB=1)
    y.name = "y"
    made = half_model(model_of([x], [y], g, "product"), FP16)
    assert ir.DataType.FLOAT16 in _types(made).values()
