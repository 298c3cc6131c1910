"""Activations are recognised by their values, in any spelling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from s2a_edge.pack.normalize import normalize
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_TOLERANCE = 1e-5  # constants such as 1.4142135 are rounded to float32

_CONSTANTS = {
    "sqrt2": math.sqrt(2), "isqrt2": 1 / math.sqrt(2), "half": 0.5, "one": 1.0, "two": 2.0,
    "three": 3.0, "c": 0.044715, "s2pi": math.sqrt(2 / math.pi), "sixth": 1 / 6, "zero": 0.0,
    "six": 6.0, "quick": 1.702, "almost": 0.47,
}
_ERF = {
    "torch": "a = Div(x, sqrt2) e = Erf(a) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)",
    "half_first": "h = Mul(x, half) a = Mul(x, isqrt2) e = Erf(a) p = Add(one, e) y = Mul(h, p)",
    "half_on_erf": "a = Mul(isqrt2, x) e = Erf(a) p = Add(e, one) q = Mul(half, p) y = Mul(x, q)",
    "half_inside": "a = Div(x, sqrt2) e = Erf(a) q = Mul(e, half) p = Add(q, half) y = Mul(p, x)",
    "by_two": "a = Div(x, sqrt2) e = Erf(a) p = Add(e, one) m = Mul(p, x) y = Div(m, two)",
}
_TANH = {
    "pow": "k = Pow(x, three) l = Mul(k, c) a = Add(x, l) g = Mul(a, s2pi) t = Tanh(g)"
           " p = Add(t, one) h = Mul(x, half) y = Mul(h, p)",
    "products": "q = Mul(x, x) k = Mul(q, x) l = Mul(c, k) a = Add(l, x) g = Mul(s2pi, a)"
                " t = Tanh(g) p = Add(one, t) m = Mul(p, x) y = Mul(half, m)",
    "factored": "q = Mul(x, x) l = Mul(c, q) a = Add(one, l) b = Mul(a, x) g = Mul(s2pi, b)"
                " t = Tanh(g) p = Add(one, t) h = Mul(half, p) y = Mul(x, h)",
}
_HARD_SWISH = {
    "hard_sigmoid": "s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, s)",
    "clip": "a = Add(x, three) b = Clip(a, zero, six) m = Mul(x, b) y = Div(m, six)",
}
_QUICK_GELU = {
    "silu": "s = Sigmoid(x) y = Mul(x, s)",
    "clip": "a = Mul(quick, x) s = Sigmoid(a) y = Mul(s, x)",
}
_OTHERS = {
    "sigmoid_gate": "s = Sigmoid(x) y = Mul(x0, s)",
    "wrong_constant": "a = Div(x, sqrt2) e = Erf(a) p = Add(e, one) m = Mul(x, p)"
                      " y = Mul(m, almost)",
    "erf": "y = Erf(x)",
    "tanh": "y = Tanh(x)",
    "relu6": "y = Clip(x, zero, six)",
}


def _check(body: str, expected: list[str], w: str = "MatMul") -> None:
    text = f"""agraph (float[3, 4] x0) => (float[3, 4] out) {{
        x = {w}(x0, weight) {body} out = {w}(y, weight) }}"""
    before = backbone(text, {"weight": normal(4, 4), **{
        k: np.float32(v) for k, v in _CONSTANTS.items()}})
    after = normalize(before)
    assert ops(after) == expected
    assert difference(before, after) < _TOLERANCE
    if "Gelu" in expected:
        form = node(after, "Gelu").attributes.get_string("approximate", "none")
        assert form == ("tanh" if "Tanh" in body else "none")


@pytest.mark.parametrize("body", _ERF.values(), ids=_ERF)
def test_gelu_by_erf(body: str) -> None:
    _check(body, ["MatMul", "Gelu", "MatMul"])


@pytest.mark.parametrize("body", _TANH.values(), ids=_TANH)
def test_gelu_by_tanh(body: str) -> None:
    _check(body, ["MatMul", "Gelu", "MatMul"])


@pytest.mark.parametrize("body", _HARD_SWISH.values(), ids=_HARD_SWISH)
def test_hard_swish(body: str) -> None:
    _check(body, ["MatMul", "HardSwish", "MatMul"])


@pytest.mark.parametrize("body", _QUICK_GELU.values(), ids=_QUICK_GELU)
def test_silu_and_quick_gelu(body: str) -> None:
    _check(body, ["MatMul", "QuickGelu", "MatMul"])


def test_mish() -> None:
    _check("p = Softplus(x) t = Tanh(p) y = Mul(x, t)", ["MatMul", "Mish", "MatMul"])


def test_hard_sigmoid_where_it_is_no_part_of_hard_swish() -> None:
    body = "a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)"
    _check(body, ["MatMul", "HardSigmoid", "MatMul"])


@pytest.mark.parametrize("body", _OTHERS.values(), ids=_OTHERS)
def test_others_stay(body: str) -> None:
    before = [part.split("(")[0].split("<")[0].strip() for part in body.split("=")[1:]]
    kept = [b.split()[0] for b in before if b and b[0].isupper()]
    _check(body, ["MatMul", *kept, "MatMul"])


def test_inner_value_that_others_read_is_kept() -> None:
    body = _ERF["torch"].replace("y = Mul(m, half)", "g = Mul(m, half) y = Add(g, e)")
    _check(body, ["MatMul", "Div", "Erf", "Add", "Mul", "Mul", "Add", "MatMul"])


def test_other_readers_of_the_input_do_not_matter() -> None:
    body = _ERF["torch"].replace("y = Mul(m, half)", "g = Mul(m, half) y = Add(g, x)")
    _check(body, ["MatMul", "Gelu", "Add", "MatMul"])
