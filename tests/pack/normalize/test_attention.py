"""Keys stay token-major, and the scale is applied once."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize import normalize
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_TOLERANCE = 1e-5
# Two samples, five tokens, two heads of four.
_START = """q2 = MatMul(x, wq) k2 = MatMul(x, wk) q3 = Reshape(q2, heads) k3 = Reshape(k2, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q3)"""
_END = """p = Softmax <axis = -1> (s) o = MatMul(p, q) o2 = Transpose <perm = [0, 2, 1, 3]> (o)
    o3 = Reshape(o2, joined) out = ReduceMean <keepdims = 0> (o3, one)"""


def _check(middle: str, expected_between: list[str]) -> None:
    text = f"agraph (float[2, 5, 8] x) => (float[2, 8] out) {{ {_START} {middle} {_END} }}"
    before = backbone(text, {
        "wq": normal(8, 8), "wk": normal(8, 8, seed=1), "scale": np.float32(0.5),
        "root": np.float32(2.0), "heads": np.asarray([0, 0, 2, 4], np.int64),
        "joined": np.asarray([0, 0, 8], np.int64), "one": np.asarray([1], np.int64),
        "flat": np.asarray([-1, 5, 4], np.int64), "apart": np.asarray([2, 2, 4, 5], np.int64)})
    after = normalize(before)
    found = ops(after)
    assert found[:4] == ["MatMul", "MatMul", "Reshape", "Reshape"]
    start, end = found.index("Transpose"), found.index("Softmax")
    assert sorted(found[start:end]) == sorted(expected_between)
    scores = node(after, "FusedMatMul")
    assert scores.inputs[1] is not None and shape_of(scores.inputs[1]) == (2, 2, 5, 4)
    assert scores.attributes.get_int("transB", 0) == 1
    assert difference(before, after) < _TOLERANCE


_KEYS = {
    "one": "kt = Transpose <perm = [0, 2, 3, 1]> (k3)",
    "two": "k = Transpose <perm = [0, 2, 1, 3]> (k3) kt = Transpose <perm = [0, 1, 3, 2]> (k)",
    "reshaped": "k = Transpose <perm = [0, 2, 1, 3]> (k3) f = Reshape(k, flat)"
                " ft = Transpose <perm = [0, 2, 1]> (f) kt = Reshape(ft, apart)",
}


@pytest.mark.parametrize("keys", _KEYS.values(), ids=_KEYS)
def test_keys(keys: str) -> None:
    _check(f"{keys} s = MatMul(q, kt)", ["Transpose", "Transpose", "FusedMatMul"])


@pytest.mark.parametrize("scaled", [
    "s0 = MatMul(q, kt) s = Mul(s0, scale)",
    "s0 = MatMul(q, kt) s = Div(s0, root)",
    "qs = Mul(q, scale) s = MatMul(qs, kt)",
    "qs = Mul(scale, q) ks = Mul(kt, scale) s = MatMul(qs, ks)",
    "qs = Div(q, root) s0 = MatMul(qs, kt) s = Mul(scale, s0)",
], ids=["after", "divided", "queries", "both", "twice"])
def test_scale_is_part_of_the_product(scaled: str) -> None:
    _check(f"{_KEYS['one']} {scaled}", ["Transpose", "Transpose", "FusedMatMul"])


def test_factors_that_cancel_are_gone() -> None:
    _check(f"{_KEYS['one']} qs = Mul(q, scale) s0 = MatMul(qs, kt) s = Mul(s0, root)",
           ["Transpose", "Transpose", "FusedMatMul"])


def test_masks_that_mask_nothing_and_nan_guards_are_gone() -> None:
    text = f"""agraph (float[2, 5, 8] x) => (float[2, 8] out) {{ {_START} {_KEYS['one']}
        s0 = MatMul(q, kt) s = Add(s0, mask) p0 = Softmax <axis = -1> (s) n = IsNaN(p0)
        p = Where(n, zero, p0) {_END.partition('(s)')[2]} }}"""
    before = backbone(text, {
        "wq": normal(8, 8), "wk": normal(8, 8, seed=1), "mask": np.zeros((1, 1, 5, 5), np.float32),
        "heads": np.asarray([0, 0, 2, 4], np.int64), "zero": np.float32(0),
        "joined": np.asarray([0, 0, 8], np.int64), "one": np.asarray([1], np.int64)})
    after = normalize(before)
    assert not {"Add", "Where", "IsNaN"} & set(ops(after))
    assert difference(before, after) < _TOLERANCE


def test_a_product_of_other_values_stays() -> None:
    text = """agraph (float[2, 5, 8] x) => (float[2, 8] out) {
        a = MatMul(x, w) b = Transpose <perm = [1, 0, 2]> (a) c = Transpose <perm = [1, 0, 2]> (b)
        d = Softmax <axis = 1> (c) out = ReduceMean <keepdims = 0> (d, one) }"""
    before = backbone(text, {"w": normal(8, 8), "one": np.asarray([1], np.int64)})
    after = normalize(before)
    assert ops(after) == ["MatMul", "Softmax", "ReduceMean"]
    assert difference(before, after) < _TOLERANCE
