"""What nobody reads is not computed, and what is read stays the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize import normalize
from tests.pack.normalize.graphs import backbone, difference, ops

_TOLERANCE = 1e-6
_RNG = np.random.default_rng(0)


def _weights(**more: np.ndarray) -> Mapping[str, np.ndarray | np.generic]:
    return {
        "w": _RNG.standard_normal((8, 8)).astype(np.float32),
        "v": _RNG.standard_normal((8, 8)).astype(np.float32),
        "b": _RNG.standard_normal(8).astype(np.float32), "first": np.asarray(0, np.int64),
        "last": np.asarray(-1, np.int64), "heads": np.asarray([0, 0, 2, 4], np.int64),
        "joined": np.asarray([0, 0, 8], np.int64), "zero": np.asarray([0], np.int64),
        "one": np.asarray([1], np.int64), "two": np.asarray([2], np.int64),
        "gamma": _RNG.standard_normal(8).astype(np.float32),
        "beta": _RNG.standard_normal(8).astype(np.float32), **more}


_BLOCK = """
    n = LayerNormalization <axis = -1> (x, gamma, beta)
    q2 = MatMul(n, w) k2 = MatMul(n, v) q3 = Reshape(q2, heads) k3 = Reshape(k2, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q3) k = Transpose <perm = [0, 2, 1, 3]> (k3)
    kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) p = Softmax <axis = -1> (s)
    o = MatMul(p, k) o2 = Transpose <perm = [0, 2, 1, 3]> (o) o3 = Reshape(o2, joined)
    a = Add(x, o3) m = LayerNormalization <axis = -1> (a, gamma, beta) h = MatMul(m, w)
    hb = Add(h, b) g = Gelu(hb) f = MatMul(g, v) y = Add(a, f)
"""


@pytest.mark.parametrize("select", [
    "out = Gather <axis = 1> (y, first)", "out = Gather <axis = 1> (y, last)",
    "part = Slice(y, one, two, one) out = Squeeze(part, one)",
])
def test_only_keys_and_values_see_all_tokens(select: str) -> None:
    before = backbone(f"agraph (float[2, 5, 8] x) => (float[2, 8] out) {{ {_BLOCK} {select} }}",
                      _weights())
    after = normalize(before)
    assert difference(before, after) < _TOLERANCE
    wide = [n.op_type for n in after.model.graph
            for v in n.outputs if 5 in shape_of(v)[1:3] and n.op_type != "Transpose"]
    # The norm and the keys; queries are those of one token.
    assert sorted(wide) == ["LayerNormalization", "MatMul", "Reshape"]
    (gelu,) = [n for n in after.model.graph if n.op_type == "Gelu"]
    assert shape_of(gelu.outputs[0]) == (2, 1, 8)


def test_two_selections_of_one_value_stay() -> None:
    """DeiT's distilled head reads two tokens; each keeps its own rows."""
    before = backbone("""agraph (float[2, 5, 8] x) => (float[2, 8] out) {
        h = MatMul(x, w) g = Gelu(h) a = Gather <axis = 1> (g, first)
        c = Gather <axis = 1> (g, last) out = Add(a, c) }""", _weights())
    after = normalize(before)
    assert difference(before, after) < _TOLERANCE
    assert ops(after).count("Gelu") == 1


@pytest.mark.parametrize(("body", "narrowed"), [
    ("h = MatMul(x, w) out = Gather <axis = 2> (h, first)", False),
    ("h = Softmax <axis = 1> (x) out = Gather <axis = 1> (h, first)", False),
    ("h = LayerNormalization <axis = 1> (x, wide) out = Gather <axis = 1> (h, first)", False),
    ("h = Add(x, wide) g = Tanh(h) out = Gather <axis = 1> (g, first)", True),
    ("h = Mul(x, x) out = Gather <axis = 1> (h, first)", True),
    ("h = Relu(x) out = Gather <axis = 0> (h, first)", True),
    ("h = Add(x, b) out = Gather <axis = 2> (h, first)", False),
])
def test_stops_where_the_axis_is_mixed(body: str, narrowed: bool) -> None:
    shape = {"axis = 2": "2, 5", "axis = 0": "5, 8"}.get(body.rpartition("<")[2][:8], "2, 8")
    wide = np.ones((5, 8), np.float32)
    before = backbone(f"agraph (float[2, 5, 8] x) => (float[{shape}] out) {{ {body} }}",
                      _weights(wide=wide))
    after = normalize(before)
    assert difference(before, after) < _TOLERANCE
    assert ("Slice" in ops(after)) == narrowed
