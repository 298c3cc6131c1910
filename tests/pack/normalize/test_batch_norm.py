"""Frozen BatchNormalization disappears."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.normalize import normalize
from s2a_edge.spec.errors import SourceError
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_TOLERANCE = 1e-5  # factors are computed in float64 and rounded once
_ROWS = {"rows": np.asarray([2, 3], np.int64)}


def _norm(channels: int) -> dict[str, np.ndarray]:
    return {"g": normal(channels, seed=1), "h": normal(channels, seed=2),
            "mean": normal(channels, seed=3), "var": np.abs(normal(channels, seed=4)) + 0.1,
            **_ROWS}


def _graph(layer: str, size: str = "2, 3, 6, 6", epsilon: str = "0.001") -> str:
    return f"""agraph (float[{size}] x) => (float[2, C] out) {{
        a = {layer} y = BatchNormalization <epsilon = {epsilon}> (a, g, h, mean, var)
        z = Relu(y) out = ReduceMean <keepdims = 0> (z, rows) }}"""


@pytest.mark.parametrize(("layer", "shape", "bias"), [
    ("Conv(x, w)", (4, 3, 3, 3), False),
    ("Conv(x, w, b)", (4, 3, 3, 3), True),
    ("Conv <group = 3> (x, w)", (6, 1, 3, 3), False),
    ("ConvTranspose(x, w, b)", (3, 5, 2, 2), True),
], ids=["conv", "conv_bias", "depthwise", "transposed"])
def test_folded_into_convolution(layer: str, shape: tuple[int, ...], bias: bool) -> None:
    op = layer.split("(")[0].split("<")[0].strip()
    channels = shape[1] if op == "ConvTranspose" else shape[0]
    weights = {"w": normal(*shape), **_norm(channels)}
    if bias:
        weights["b"] = normal(channels, seed=5)
    before = backbone(_graph(layer), weights, {"a": "/stem/conv/Conv"})
    after = normalize(before)
    assert ops(after) == [op, "Relu", "ReduceMean"]
    assert difference(before, after) < _TOLERANCE
    conv = node(after, op)
    assert [v.name for v in conv.inputs[1:] if v] == ["stem.conv.weight", "stem.conv.bias"]


@pytest.mark.parametrize("trans", [0, 1])
def test_folded_into_gemm(trans: int) -> None:
    text = f"""agraph (float[3, 4] x) => (float[3, 5] y) {{
        a = Gemm <transB = {trans}> (x, w, b) y = BatchNormalization (a, g, h, mean, var) }}"""
    before = backbone(text, {"w": normal(*((5, 4) if trans else (4, 5))), "b": normal(5, seed=9),
                             **_norm(5)})
    after = normalize(before)
    assert ops(after) == ["Gemm"]
    assert after.features.name == "y"
    assert difference(before, after) < _TOLERANCE


def test_a_convolution_that_others_read_keeps_its_weight() -> None:
    text = """agraph (float[2, 3, 6, 6] x) => (float[2, 4] out) {
        a = Conv(x, w) y = BatchNormalization (a, g, h, mean, var)
        s = Add(a, y) out = ReduceMean <keepdims = 0> (s, rows) }"""
    before = backbone(text, {"w": normal(4, 3, 3, 3), **_norm(4)})
    after = normalize(before)
    assert ops(after) == ["Conv", "BatchNormalization", "Add", "ReduceMean"]
    assert difference(before, after) < _TOLERANCE


def test_without_a_layer_before_it_it_stays_with_a_bias_of_its_own() -> None:
    before = backbone(_graph("Relu(x)"), _norm(3), {"y": "/stage/bn/BatchNormalization"})
    after = normalize(before)
    assert ops(after) == ["Relu", "BatchNormalization", "Relu", "ReduceMean"]
    assert {"stage.bn.weight", "stage.bn.bias"} <= set(after.model.graph.initializers)
    assert difference(before, after) < _TOLERANCE


def test_statistics_of_the_batch_are_refused() -> None:
    text = """agraph (float[2, 3, 6, 6] x) => (float[2, 3] out) {
        y, m, v = BatchNormalization <training_mode = 1> (x, g, h, mean, var)
        out = ReduceMean <keepdims = 0> (y, rows) }"""
    with pytest.raises(SourceError, match="frozen statistics"):
        normalize(backbone(text, _norm(3)))


def test_folded_weights_take_no_memory() -> None:
    before = backbone(_graph("Conv(x, w)"), {"w": normal(4, 3, 3, 3), **_norm(4)})
    weight = node(normalize(before), "Conv").inputs[1]
    assert weight is not None and weight.const_value is not None
    first, second = weight.const_value.numpy(), weight.const_value.numpy()
    assert np.array_equal(first, second) and not np.shares_memory(first, second)
