"""Reshapes of Reshapes become one, and compute the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import KIND_KEY
from s2a_edge.pack.merge_views import merge_views
from tests.pack.compiled import run


def _chain(kinds: tuple[str, str]) -> ir.Model:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (4, 6))
    y = g.op("Relu", x)
    first = g.op("Reshape", y, g.constant([2, 12]))
    second = g.op("Reshape", first, g.constant([24]))
    for value, kind in zip((y, first), kinds, strict=True):
        value.metadata_props[KIND_KEY] = kind
    out = g.op("Neg", g.op("Reshape", second, g.constant([3, 8])))
    return model_of([x], [out], g, "views")


def test_a_chain_becomes_one_view() -> None:
    x = {"x": np.arange(24, dtype=np.float32).reshape(4, 6)}
    model = _chain(("working", "working"))
    before = next(iter(run(model, x).values()))
    merge_views(model)
    assert [n.op_type for n in model.graph] == ["Relu", "Reshape", "Neg"]
    assert len(model.graph.initializers) == 1
    np.testing.assert_array_equal(next(iter(run(model, x).values())), before)


def test_a_view_that_says_what_its_buffer_is_for_stays() -> None:
    model = _chain(("working", "saved"))
    merge_views(model)
    kept = [n.outputs[0] for n in model.graph if n.op_type == "Reshape"]
    assert [v.metadata_props[KIND_KEY] for v in kept] == ["saved", "working", "working"]
