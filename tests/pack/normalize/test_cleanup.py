"""What changes nothing is dropped; padding is explicit; invariants are checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.normalize import check_normalized, normalize
from s2a_edge.spec.errors import InternalError
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_CONSTANTS: dict[str, np.ndarray | np.generic] = {
    "zero": np.float32(0), "one": np.float32(1), "zeros": np.zeros(4, np.float32),
    "same": np.asarray([3, 4], np.int64), "other": np.asarray([3, 2, 2], np.int64),
    "flat": np.asarray([12], np.int64), "axis": np.asarray([0], np.int64),
    "wide": np.zeros((2, 3, 4), np.float32), "no": np.asarray(False),
    "no_pads": np.zeros(4, np.int64), "shift": np.asarray([1, 0, -1, 0], np.int64),
    "end": np.asarray([99], np.int64), "step": np.asarray([1], np.int64),
    "last": np.asarray([-1], np.int64), "before": np.asarray([-99], np.int64), "w": normal(4, 4),
}


def _normalized(body: str, out: str = "float[3, 4] out") -> list[str]:
    before = backbone(f"agraph (float[3, 4] x) => ({out}) {{ a = Tanh(x) {body} }}", _CONSTANTS)
    after = normalize(before)
    assert difference(before, after) == 0
    return ops(after)


@pytest.mark.parametrize("body", [
    "b = Identity(a)", "b = Dropout(a)", "b, mask = Dropout(a)", "b = Cast <to = 1> (a)",
    "b = Add(a, zero)", "b = Add(zero, a)", "b = Sub(a, zero)", "b = Mul(one, a)",
    "b = Div(a, one)", "b = Reshape(a, same)", "b = Expand(a, same)", "b = Concat <axis = 0> (a)",
    "c = Transpose <perm = [1, 0]> (a) b = Transpose <perm = [1, 0]> (c)",
    "c = Reshape(a, other) b = Reshape(c, same)", "c = Unsqueeze(a, axis) b = Squeeze(c, axis)",
    "c = Reshape(a, flat) d = Unsqueeze(c, axis) e = Reshape(d, other) b = Reshape(e, same)",
    "b = Where(no, x, a)", "b = Pad(a, no_pads)", "b = Slice(a, axis, end, axis)",
    "b = Slice(a, axis, end, axis, step)", "b = CastLike(a, x)", "c = Identity(a) b = Identity(c)",
])
def test_dropped(body: str) -> None:
    assert _normalized(f"{body} out = Sigmoid(b)") == ["Tanh", "Sigmoid"]
    assert _normalized(body.replace("b = ", "out = ").replace("b, ", "out, ")) == ["Tanh"]


def test_kept() -> None:
    assert _normalized("b = Add(a, zeros) out = Sigmoid(b)") == ["Tanh", "Add", "Sigmoid"]
    assert _normalized("b = Add(a, wide) c = Flatten <axis = 2> (b) out = Sigmoid(c)",
                       "float[6, 4] out") == ["Tanh", "Add", "Reshape", "Sigmoid"]
    assert _normalized("b = Pad(a, shift) out = Sigmoid(b)") == ["Tanh", "Pad", "Sigmoid"]
    assert _normalized("b = Slice(a, last, before, axis, last) out = Sigmoid(b)") == [
        "Tanh", "Slice", "Sigmoid"]
    assert _normalized("b = Sub(zero, a) out = Sigmoid(b)") == ["Tanh", "Sub", "Sigmoid"]


def test_chain_becomes_one_reshape() -> None:
    text = "b = Reshape(a, flat) c = Reshape(b, other) out = ReduceMean <keepdims = 0> (c, axis1)"
    before = backbone(f"agraph (float[3, 4] x) => (float[3, 2] out) {{ a = Tanh(x) {text} }}",
                      {**_CONSTANTS, "axis1": np.asarray([1], np.int64)})
    assert ops(normalize(before)) == ["Tanh", "Reshape", "ReduceMean"]


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_transposes_compose(first: list[int], second: list[int]) -> None:
    before = backbone(
        f"""agraph (float[2, 3, 4, 5] x) => (float[2, R] out) {{
        a = Transpose <perm = {first}> (x) b = Transpose <perm = {second}> (a)
        c = Transpose <perm = {np.argsort([first[p] for p in second]).tolist()}> (b)
        out = Reshape(c, rows) }}""", {"rows": np.asarray([2, 60], np.int64)})
    after = normalize(before)
    assert ops(after) == ["Reshape"]
    assert difference(before, after) == 0


@given(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]), st.integers(1, 3),
       st.integers(1, 3), st.integers(5, 9))
def test_padding_is_explicit(mode: str, kernel: int, stride: int, size: int) -> None:
    before = backbone(
        f"""agraph (float[1, 2, {size}, {size + 1}] x) => (float[1, R] out) {{
        a = Conv <auto_pad = "{mode}", strides = [{stride}, {stride}]> (x, w)
        out = Flatten(a) }}""", {"w": normal(2, 2, kernel, kernel)})
    after = normalize(before)
    conv = node(after, "Conv")
    assert "auto_pad" not in conv.attributes and conv.attributes.get_ints("pads") is not None
    assert difference(before, after) < 1e-5


def test_bias_comes_second_and_flat() -> None:
    before = backbone("""agraph (float[2, 3, 4] x) => (float[2, 4] out) {
        a = MatMul(x, w) b = Add(row, a) out = ReduceMean <keepdims = 0> (b, axis) }""",
                      {"w": normal(4, 4), "row": normal(1, 1, 4),
                       "axis": np.asarray([1], np.int64)})
    after = normalize(before)
    add = node(after, "Add")
    assert add.inputs[0] is not None and add.inputs[0].producer() is not None
    assert add.inputs[1] is not None and add.inputs[1].shape == ir.Shape([4])
    assert difference(before, after) < 1e-6


def test_the_argument_is_left_as_it_was() -> None:
    before = backbone("agraph (float[3, 4] x) => (float[3, 4] y) { a = Identity(x) y = Tanh(a) }",
                      {})
    normalize(before)
    assert ops(before) == ["Identity", "Tanh"]


@pytest.mark.parametrize("damage", ["opset", "shape", "name", "operator", "output"])
def test_invariants(damage: str) -> None:
    good = normalize(backbone(
        "agraph (float[3, 4] x) => (float[3, 4] y) { a = Tanh(x) y = Sigmoid(a) }", {}))
    check_normalized(good)
    graph = good.model.graph
    first, second = list(graph)
    if damage == "opset":
        graph.opset_imports[""] = 20
    elif damage == "shape":
        first.outputs[0].shape = None
    elif damage == "name":
        second.name = first.name
    elif damage == "operator":
        first.op_type = "Identity"
    else:
        good = replace(good, features=first.outputs[0])
    with pytest.raises(InternalError):
        check_normalized(good)
