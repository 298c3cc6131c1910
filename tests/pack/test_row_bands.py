"""Bands of rows give what the whole convolution gives, with columns as small as asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.graph import KIND_KEY, MODULE_KEY
from s2a_edge.pack.plan import Runtime, plan_memory
from s2a_edge.pack.plan.workspaces import workspaces_of
from s2a_edge.pack.row_bands import split_into_bands
from s2a_edge.pack.shape_inference import infer_outputs
from tests.pack.compiled import run

RUNTIME = Runtime(1, (1, 32))
Shape = tuple[int, ...]


def conv(op_type: str, x_shape: Shape, w_shape: Shape, *, bias: bool = False,
         **attributes: Any) -> ir.Model:
    """One convolution between two values of the arena."""
    g = GraphBuilder()
    g.module = "layer"
    x = g.input("x", ir.DataType.FLOAT, x_shape)
    draw = np.random.default_rng(0)
    operands = [g.initializer("w", draw.standard_normal(w_shape).astype(np.float32))]
    if bias:
        channels = w_shape[0] if op_type == "Conv" else w_shape[1] * attributes.get("group", 1)
        operands.append(g.initializer("b", draw.standard_normal(channels).astype(np.float32)))
    g.kind = "saved"
    y = g.op(op_type, g.op("Neg", x), *operands, **attributes)
    return model_of([x], [g.op("Abs", y)], g, "conv")


def columns_of(model: ir.Model) -> int:
    return max((sum(workspaces_of(n, RUNTIME).after_bytes) for n in model.graph
                if n.op_type in ("Conv", "ConvTranspose")), default=0)


def check_equal(whole: ir.Model, banded: ir.Model, x_shape: Shape) -> None:
    x = np.random.default_rng(1).standard_normal(x_shape).astype(np.float32)
    expected, got = (next(iter(run(m, {"x": x}).values())) for m in (whole, banded))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


CASES: dict[str, tuple[str, Shape, Shape, dict[str, Any]]] = {
    "plain": ("Conv", (2, 24, 9, 7), (80, 24, 3, 3), {}),
    "padded": ("Conv", (2, 24, 9, 7), (80, 24, 3, 3), {"pads": [1, 1, 1, 1]}),
    "uneven": ("Conv", (1, 24, 9, 7), (80, 24, 3, 2), {"pads": [2, 0, 1, 1]}),
    "strided": ("Conv", (1, 24, 14, 9), (80, 24, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "dilated": ("Conv", (1, 24, 12, 7), (90, 24, 3, 3),
                {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    "grouped": ("Conv", (1, 24, 8, 4), (96, 12, 3, 3), {"pads": [1, 1, 1, 1], "group": 2}),
    "one axis": ("Conv", (1, 24, 30), (64, 24, 5), {"pads": [2, 2]}),
    "three axes": ("Conv", (1, 12, 6, 3, 3), (80, 12, 3, 3, 3), {"pads": [1] * 6}),
    "transposed": ("ConvTranspose", (2, 24, 8, 7), (24, 16, 3, 3), {}),
    "transposed, padded": ("ConvTranspose", (2, 24, 8, 7), (24, 16, 3, 3), {"pads": [1, 1, 1, 1]}),
    "transposed, strided": ("ConvTranspose", (1, 24, 8, 7), (24, 16, 3, 3),
                            {"pads": [1, 1, 1, 1], "strides": [2, 2], "output_padding": [1, 1]}),
    "transposed, points": ("ConvTranspose", (1, 90, 8, 7), (90, 2, 1, 1),
                           {"strides": [2, 2], "output_padding": [1, 1]}),
    "transposed, dilated": ("ConvTranspose", (1, 24, 9, 7), (24, 16, 3, 3),
                            {"pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    "transposed, grouped": ("ConvTranspose", (1, 24, 8, 7), (24, 8, 3, 3),
                            {"strides": [3, 1], "group": 2}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_equal_and_small(name: str, parts: int, bias: bool) -> None:
    op_type, x_shape, w_shape, attributes = CASES[name]
    whole = conv(op_type, x_shape, w_shape, bias=bias, **attributes)
    banded = whole.clone()
    before = columns_of(whole)
    most = before * 7 // (8 if parts == 2 else 10)
    if not split_into_bands(banded, most, RUNTIME):
        assert name in ("transposed, points",)  # its result is larger than its columns
        return
    check_emitted(banded)
    assert columns_of(banded) <= most
    check_equal(whole, banded, x_shape)
    plans = [plan_memory(m).plan for m in (whole, banded)]
    assert plans[1].liveness_peak_bytes < plans[0].liveness_peak_bytes


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    draw = data.draw
    op_type = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    stride, rows = draw(st.integers(1, 3)), draw(st.integers(2, 14))
    reach = (kernel - 1) * dilation
    pads = draw(st.tuples(st.integers(0, reach), st.integers(0, reach)))
    group = draw(st.sampled_from([1, 2]))
    x_shape = (draw(st.integers(1, 2)), 12, rows, 3)
    attributes: dict[str, Any] = {"strides": [stride, 1], "dilations": [dilation, 1],
                                  "pads": [pads[0], 0, pads[1], 0], "group": group}
    if op_type == "Conv":
        out_rows = (rows + sum(pads) - reach - 1) // stride + 1
        w_shape = (60 * group, 12 // group, kernel, 2)
    else:
        extra = draw(st.integers(0, stride - 1))
        out_rows = (rows - 1) * stride + reach + 1 - sum(pads) + extra
        w_shape = (12, 12 // group, kernel, 2)
        attributes["output_padding"] = [extra, 0]
    assume(out_rows > 1)
    whole = conv(op_type, x_shape, w_shape, **attributes)
    banded = whole.clone()
    most = columns_of(whole) * draw(st.integers(2, 9)) // 10
    if split_into_bands(banded, most, RUNTIME):
        check_emitted(banded)
        assert columns_of(banded) <= most
        check_equal(whole, banded, x_shape)


def test_nodes_keep_what_is_said_of_them() -> None:
    model = conv("Conv", (2, 24, 9, 7), (80, 24, 3, 3), pads=[1, 1, 1, 1])
    name = next(n for n in model.graph if n.op_type == "Conv").outputs[0].name
    assert split_into_bands(model, columns_of(model) // 3, RUNTIME) == 1
    made = {n.op_type: n for n in model.graph}
    assert [n.op_type for n in model.graph] == ["Neg", *["Slice", "Conv"] * 3, "Concat", "Abs"]
    assert made["Concat"].outputs[0].name == name
    assert {made[t].outputs[0].metadata_props[KIND_KEY] for t in ("Conv", "Concat")} == {"saved"}
    assert {made[t].metadata_props[MODULE_KEY] for t in ("Slice", "Conv", "Concat")} == {"layer"}


@pytest.mark.parametrize(("x_shape", "w_shape"), [
    ((1, 8, 40, 40), (16, 8, 3, 3)),  # expanded tile by tile
    ((1, 24, 9, 7), (80, 24, 1, 1)),  # no columns at all
    ((1, 2, 5, 4), (200, 2, 3, 3)),  # the result is larger than the columns
])
def test_what_cannot_gain_stays(x_shape: Shape, w_shape: Shape) -> None:
    model = conv("Conv", x_shape, w_shape)
    before = [n.op_type for n in model.graph]
    assert split_into_bands(model, 256, RUNTIME) == 0
    assert [n.op_type for n in model.graph] == before


def test_what_the_caller_binds_stays() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (1, 24, 9, 7))
    w = g.initializer("w", np.ones((80, 24, 3, 3), np.float32))
    model = model_of([x], [g.op("Conv", x, w)], g, "bound")
    assert split_into_bands(model, 256, RUNTIME) == 0


def test_small_columns_stay() -> None:
    model = conv("Conv", (2, 24, 9, 7), (80, 24, 3, 3))
    assert split_into_bands(model, columns_of(model), RUNTIME) == 0


def test_output_shapes_are_those_of_inference() -> None:
    model = conv("ConvTranspose", (1, 24, 8, 7), (24, 16, 3, 3), strides=[2, 2],
                 pads=[1, 1, 1, 1], output_padding=[1, 1])
    split_into_bands(model, columns_of(model) // 2, RUNTIME)
    for node in model.graph:
        if node.op_type == "Concat":
            given = list(node.outputs[0].shape or ())
            infer_outputs(node)
            assert list(node.outputs[0].shape or ()) == given == [1, 16, 16, 14]
