"""GroupNorm of exporters without the operator; its parameters keep their names."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.normalize import normalize
from tests.pack.normalize.graphs import backbone, difference, node, normal, ops

_TOLERANCE = 1e-6


def _weights(groups: int) -> dict[str, np.ndarray | np.generic]:
    return {"fold": np.asarray([0, groups, -1], np.int64),
            "unfold": np.asarray([2, 6, 3, 4], np.int64), "rows": np.asarray([2, 3], np.int64),
            "ones": np.ones(groups, np.float32), "zeros": np.zeros(groups, np.float32),
            "w": normal(6, 1, 1), "b": normal(1, 6, 1, 1, seed=1)}


_NORM = "r = Reshape(x, fold) n = InstanceNormalization(r, ones, zeros) u = Reshape(n, unfold)"
_TAILS = {
    "both": ("s = Mul(u, w) y = Add(s, b)", ["norm.weight", "norm.bias"]),
    "swapped": ("s = Mul(w, u) y = Add(b, s)", ["norm.weight", "norm.bias"]),
    "scale": ("y = Mul(u, w)", ["norm.weight"]),
    "none": ("y = Identity(u)", []),
}


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("tail", _TAILS)
def test_spelled_by_an_instance_norm(tail: str, groups: int) -> None:
    body, names = _TAILS[tail]
    text = f"""agraph (float[2, 6, 3, 4] x) => (float[2, 6] out) {{
        {_NORM} {body} t = Relu(y) out = ReduceMean <keepdims = 0> (t, rows) }}"""
    before = backbone(text, _weights(groups), rename={"w": "norm.weight", "b": "norm.bias"})
    after = normalize(before)
    assert ops(after) == ["GroupNormalization", "Relu", "ReduceMean"]
    norm = node(after, "GroupNormalization")
    assert norm.attributes.get_int("num_groups") == groups
    assert [v.name for v in norm.inputs[1:] if v is not None][: len(names)] == names
    assert difference(before, after) < _TOLERANCE


def test_other_norms_between_reshapes_stay_apart() -> None:
    weights = {**_weights(3), "ones": np.asarray([1, 2, 1], np.float32)}
    text = f"""agraph (float[2, 6, 3, 4] x) => (float[2, 6] out) {{
        {_NORM} out = ReduceMean <keepdims = 0> (u, rows) }}"""
    before = backbone(text, weights)
    after = normalize(before)
    assert ops(after) == ["Reshape", "GroupNormalization", "Reshape", "ReduceMean"]
    assert difference(before, after) < _TOLERANCE
