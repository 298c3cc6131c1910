"""LayerNorm in the spellings that exporters use."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.normalize import normalize
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_TOLERANCE = 1e-5  # one reassociated reduction over eight numbers

_SQUARES = {"pow": "sq = Pow(d, two)", "product": "sq = Mul(d, d)"}
_DIVISIONS = {
    "div": "s = Sqrt(ve) y0 = Div(d, s)",
    "div_pow": "s = Pow(ve, half) y0 = Div(d, s)",
    "reciprocal": "s = Sqrt(ve) r = Reciprocal(s) y0 = Mul(d, r)",
    "one_over": "s = Sqrt(ve) r = Div(one, s) y0 = Mul(r, d)",
    "pow": "r = Pow(ve, minus_half) y0 = Mul(d, r)",
}
_AFFINE = {
    "none": "y = Identity(y0)",
    "weight": "y = Mul(y0, w)",
    "bias": "y = Add(b, y0)",
    "both": "y1 = Mul(w, y0) y = Add(y1, b)",
    "shaped": "y1 = Mul(y0, w3) y = Add(y1, b3)",
}


def _weights() -> dict[str, np.ndarray | np.generic]:
    w, b = normal(8), normal(8, seed=1)
    scalars = {"two": 2.0, "half": 0.5, "one": 1.0, "minus_half": -0.5, "eps": 1e-5}
    return {"axes": np.asarray([-1], np.int64), "w": w, "b": b, "w3": w.reshape(1, 1, 8),
            "b3": b.reshape(1, 1, 8), **{k: np.float32(v) for k, v in scalars.items()}}


def _graph(square: str = "pow", division: str = "div", affine: str = "both",
           epsilon: str = "ve = Add(v, eps)") -> str:
    return f"""agraph (float[2, 5, 8] x) => (float[2, 8] out) {{
        m = ReduceMean(x, axes) d = Sub(x, m) {_SQUARES[square]} v = ReduceMean(sq, axes)
        {epsilon} {_DIVISIONS[division]} {_AFFINE[affine]}
        out = ReduceMean <keepdims = 0> (y, one_axis)
    }}"""


def _check(text: str) -> None:
    before = backbone(text, {**_weights(), "one_axis": np.asarray([1], np.int64)})
    after = normalize(before)
    assert ops(after) == ["LayerNormalization", "ReduceMean"]
    fused = node(after, "LayerNormalization")
    assert fused.attributes.get_float("epsilon", 0.0) == pytest.approx(1e-5)
    assert fused.attributes.get_int("axis", 0) == -1
    assert difference(before, after) < _TOLERANCE


@pytest.mark.parametrize("square", _SQUARES)
@pytest.mark.parametrize("division", _DIVISIONS)
def test_spellings(square: str, division: str) -> None:
    _check(_graph(square, division))


@pytest.mark.parametrize("affine", _AFFINE)
def test_affine(affine: str) -> None:
    _check(_graph(affine=affine))


def test_epsilon_first() -> None:
    _check(_graph(epsilon="ve = Add(eps, v)"))


@pytest.mark.parametrize(("old", "new"), [
    ("v = ReduceMean(sq, axes)", "v = ReduceMean(sq, one_axis)"),  # over tokens
    ("d = Sub(x, m)", "d = Sub(m, x)"),
    ("sq = Pow(d, two)", "sq = Pow(x, two)"),  # RMS, not variance
    ("y0 = Div(d, s)", "y0 = Div(x, s)"),
])
def test_look_alikes_stay(old: str, new: str) -> None:
    text = _graph()
    assert old in text
    before = backbone(text.replace(old, new),
                      {**_weights(), "one_axis": np.asarray([1], np.int64)})
    after = normalize(before)
    assert "LayerNormalization" not in ops(after)
    assert difference(before, after) < _TOLERANCE


def test_inner_value_that_others_read_is_kept() -> None:
    text = _graph().replace("out = Reduce", "z = Mul(y, d) out = Reduce").replace(
        "(y, one_axis)", "(z, one_axis)")
    before = backbone(text, {**_weights(), "one_axis": np.asarray([1], np.int64)})
    after = normalize(before)
    assert {"LayerNormalization", "Sub"} <= set(ops(after))
    assert difference(before, after) < _TOLERANCE
