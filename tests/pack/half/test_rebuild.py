"""What nobody reads goes, in both directions between float32 and half precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.half.convert import half_model
from s2a_edge.pack.half.formats import FP16, Half
from s2a_edge.pack.half.twin import float32_twin


@pytest.mark.parametrize("rebuild", [half_model, float32_twin])
def test_a_chain_that_leads_to_no_output_goes_as_a_whole(
        rebuild: Callable[[ir.Model, Half], ir.Model]) -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (2, 3))
    dead = g.op("Add", x, g.initializer("unread", np.ones(3, np.float32)))
    for _ in range(3):
        dead = g.op("Neg", dead)
    y = g.op("Mul", x, g.initializer("read", np.ones(3, np.float32)))
    y.name = "y"
    made = rebuild(model_of([x], [y], g, "two chains"), FP16)
    assert "Neg" not in {node.op_type for node in made.graph}
    assert not any("unread" in name for name in made.graph.initializers)
    assert [v.name for v in made.graph.outputs] == ["y"]
