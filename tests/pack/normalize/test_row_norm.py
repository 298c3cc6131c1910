"""RMSNorm and division by a row's length, in the spellings that exporters use."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.normalize import normalize
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_TOLERANCE = 1e-6

_SQUARES = {"pow": "sq = Pow(x, two)", "product": "sq = Mul(x, x)"}
_DIVISIONS = {
    "div": "s = Sqrt(ve) y0 = Div(x, s)",
    "reciprocal": "s = Sqrt(ve) r = Reciprocal(s) y0 = Mul(x, r)",
    "one_over": "s = Sqrt(ve) r = Div(one, s) y0 = Mul(r, x)",
    "pow": "r = Pow(ve, minus_half) y0 = Mul(x, r)",
}
_WEIGHTS = {
    "none": "y = Identity(y0)", "weight": "y = Mul(y0, w)", "weight_first": "y = Mul(w, y0)",
}
_GUARDS = {
    "clip": "c = Clip(n, tiny)", "max": "c = Max(n, tiny)",
    "expanded": "c0 = Clip(n, tiny) c = Expand(c0, shape)",
}


def _check(body: str, fused: str) -> None:
    text = f"""agraph (float[2, 5, 8] x) => (float[2, 8] out) {{
        {body} out = ReduceMean <keepdims = 0> (y, one_axis) }}"""
    scalars = {"two": 2.0, "one": 1.0, "minus_half": -0.5, "eps": 1e-3, "tiny": 1e-12, "large": 3.0}
    constants: dict[str, np.ndarray | np.generic] = {
        "axes": np.asarray([-1], np.int64), "one_axis": np.asarray([1], np.int64), "w": normal(8),
        "shape": np.asarray([2, 5, 8], np.int64), **{k: np.float32(v) for k, v in scalars.items()}}
    before = backbone(text, constants)
    after = normalize(before)
    assert (fused in ops(after)) == (ops(after) == [fused, "ReduceMean"])
    assert (fused in ops(after)) == ("large" not in body)
    if fused in ops(after) and fused == "RMSNormalization":
        assert node(after, fused).attributes.get_float("epsilon", 0.0) == pytest.approx(1e-3)
    assert difference(before, after) < _TOLERANCE


@pytest.mark.parametrize("weight", _WEIGHTS)
@pytest.mark.parametrize("division", _DIVISIONS)
@pytest.mark.parametrize("square", _SQUARES)
def test_rms_norm(square: str, division: str, weight: str) -> None:
    _check(f"{_SQUARES[square]} v = ReduceMean(sq, axes) ve = Add(v, eps) {_DIVISIONS[division]} "
           f"{_WEIGHTS[weight]}", "RMSNormalization")


@pytest.mark.parametrize("guard", _GUARDS)
def test_division_by_the_length(guard: str) -> None:
    _check(f"n = ReduceL2(x, axes) {_GUARDS[guard]} y = Div(x, c)", "LpNormalization")


def test_a_least_length_that_matters_stays() -> None:
    _check("n = ReduceL2(x, axes) c = Clip(n, large) y = Div(x, c)", "LpNormalization")
