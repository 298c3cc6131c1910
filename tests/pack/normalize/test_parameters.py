"""Every operand that may be trained is an initializer of its own, with a readable name."""

from __future__ import annotations

import numpy as np

from s2a_edge.pack.normalize import normalize
from tests.pack.normalize.graphs import backbone, difference, normal, ops

_TEXT = """agraph (float[3, 4] x) => (float[3, 4] out) {
    a = MatMul(x, m1) b = Add(a, zeros) c = LayerNormalization(b, ones, zeros)
    d = MatMul(c, m2) e = Add(zeros, d) f = LayerNormalization(e, ones, zeros)
    g = MatMul(f, m1) out = Add(g, row) }"""
_NAMES = {"a": "/first/MatMul", "b": "/first/Add", "c": "/norm1/LayerNormalization",
          "d": "/second/MatMul", "e": "/second/Add", "f": "/norm2/LayerNormalization",
          "g": "/third/MatMul", "out": "/third/Add"}


def _normalized(zeros: str = "second.bias") -> tuple[list[str], dict[str, np.ndarray]]:
    before = backbone(_TEXT, {
        "m1": normal(4, 4), "m2": normal(4, 4, seed=1), "zeros": np.zeros(4, np.float32),
        "ones": np.ones(4, np.float32), "row": normal(1, 4)}, _NAMES, {"zeros": zeros})
    after = normalize(before)
    assert difference(before, after) < 1e-6
    used = [str(v.name) for n in after.model.graph for v in n.inputs
            if v is not None and v.is_initializer()]
    return used, {k: v.const_value.numpy() for k, v in after.model.graph.initializers.items()
                  if v.const_value is not None}


def test_merged_biases_are_separate() -> None:
    used, arrays = _normalized()
    assert used == ["first.weight", "first.bias", "norm1.weight", "norm1.bias",
                    "second.weight", "second.bias", "norm2.weight", "norm2.bias",
                    "first.weight", "third.bias"]
    assert arrays["third.bias"].shape == (4,)
    assert set(used) == set(arrays)


def test_names_do_not_depend_on_which_use_gave_the_name() -> None:
    expected, _ = _normalized("second.bias")
    for name in ("onnx_Add_7", "norm1.bias", "elsewhere.bias"):
        used, _ = _normalized(name)
        assert used == expected


def test_a_position_embedding_keeps_its_name() -> None:
    before = backbone("""agraph (float[2, 3, 4] x) => (float[2, 4] out) {
        a = Add(x, pos_embed) out = ReduceMean <keepdims = 0> (a, axis) }""",
                      {"pos_embed": normal(1, 3, 4), "axis": np.asarray([1], np.int64)})
    after = normalize(before)
    assert ops(after) == ["Add", "ReduceMean"]
    assert "pos_embed" in after.model.graph.initializers


def test_small_copies_share_their_data() -> None:
    before = backbone(_TEXT, {
        "m1": normal(4, 4), "m2": normal(4, 4), "zeros": np.zeros(4, np.float32),
        "ones": np.ones(4, np.float32), "row": normal(1, 4)}, _NAMES)
    graph = normalize(before).model.graph
    assert {v.name for v in before.model.graph.initializers.values()} >= {"zeros", "ones"}
    assert len([n for n in graph.initializers if n.endswith("bias")]) == 5
