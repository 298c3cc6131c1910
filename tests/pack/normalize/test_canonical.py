"""Operators in disguise: pools, norms and lookups that are others."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.normalize import normalize
from tests.pack.capture.running import random_inputs, run_model
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_TOLERANCE = 1e-6
_CONSTANTS: dict[str, np.ndarray | np.generic] = {
    "rows": np.asarray([2, 3], np.int64), "w": normal(3), "b": normal(3, seed=1),
    "flat": np.asarray([2, -1], np.int64), "one": np.float32(1),
    "axes": np.asarray([2, 3], np.int64),
    "at": np.asarray([[1, 0], [0, -1], [-2, 2], [1, 1]], np.int64),
}


def _check(body: str, expected: list[str], out: int = 3) -> None:
    text = f"agraph (float[2, 3, 4, 5] x) => (float[2, {out}] out) {{ {body} }}"
    before = backbone(text, _CONSTANTS)
    after = normalize(before)
    assert ops(after) == expected
    assert difference(before, after) < _TOLERANCE


@pytest.mark.parametrize(("op", "expected"), [
    ("GlobalMaxPool", "ReduceMax"), ("GlobalLpPool", "ReduceL2"),
    ("GlobalLpPool <p = 1>", "ReduceL1"),
])
def test_global_pools_are_reductions(op: str, expected: str) -> None:
    _check(f"p = {op} (x) out = Reshape(p, flat)", [expected, "Reshape"])


def test_a_norm_of_absolute_values_is_a_quotient() -> None:
    _check("n = LpNormalization <axis = 1, p = 1> (x) out = ReduceMean <keepdims = 0> (n, rows)",
           ["ReduceL1", "Clip", "Div", "ReduceMean"])


def test_a_norm_of_zero_divides_nothing_by_zero() -> None:
    text = """agraph (float[2, 3] x) => (float[2, 3] out) {
        z = Mul(x, zero) out = LpNormalization <p = 1> (z) }"""
    after = normalize(backbone(text, {"zero": np.zeros(3, np.float32)}))
    assert "LpNormalization" not in ops(after)
    assert not run_model(after.model, random_inputs(after)).any()


def test_log_of_a_sum() -> None:
    _check("a = Abs(x) s = ReduceLogSum <keepdims = 0> (a, axes) out = Identity(s)",
           ["Abs", "ReduceSum", "Log"])


def test_instance_normalization_is_a_group_norm_of_single_channels() -> None:
    _check("n = InstanceNormalization <epsilon = 0.01> (x, w, b)"
           " out = ReduceMean <keepdims = 0> (n, rows)", ["GroupNormalization", "ReduceMean"])


def test_constant_positions_are_rows() -> None:
    text = """agraph (float[2, 3, 4] x) => (float[4, 4] out) { out = GatherND(x, at) }"""
    before = backbone(text, _CONSTANTS)
    after = normalize(before)
    assert ops(after) == ["Reshape", "Gather"]
    assert difference(before, after) == 0
    index = node(after, "Gather").inputs[1]
    assert index is not None and index.const_value is not None
    assert index.const_value.numpy().tolist() == [3, 2, 2, 4]
