"""The scheduler keeps every order valid and never raises the peak."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.schedule import live_peak_bytes, schedule, sink


def _random_graph(choices: list[tuple[int, int, int]]) -> ir.Model:
    """Nodes that read earlier values; sizes grow and shrink by Slice and Concat."""
    g = GraphBuilder()
    values = [g.input("x", ir.DataType.FLOAT, (16,))]
    for kind, left, right in choices:
        a, b = values[left % len(values)], values[right % len(values)]
        if kind == 0:
            values.append(g.op("Concat", a, b, axis=0))
        elif kind == 1:
            values.append(g.op("Slice", a, g.constant([0]), g.constant([8]), g.constant([0])))
        else:
            values.append(g.op("Neg", a))
    return model_of(values[:1], values[-1:], g, "random")


def _is_topological(nodes: list[ir.Node]) -> bool:
    made: set[ir.Value] = set()
    for node in nodes:
        if any(v is not None and v.producer() is not None and v not in made for v in node.inputs):
            return False
        made.update(node.outputs)
    return True


CHOICES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 12)),
                   min_size=1, max_size=12)


@given(CHOICES)
def test_any_order_stays_valid_and_complete(choices: list[tuple[int, int, int]]) -> None:
    nodes = list(_random_graph(choices).graph)
    late = sink(nodes)
    assert sorted(map(id, late)) == sorted(map(id, nodes))
    assert _is_topological(late)


@given(CHOICES)
def test_the_peak_never_rises(choices: list[tuple[int, int, int]]) -> None:
    model = _random_graph(choices)
    before = live_peak_bytes(list(model.graph))
    schedule(model)
    assert live_peak_bytes(list(model.graph)) <= before
    assert _is_topological(list(model.graph))


def test_an_early_large_value_sinks_to_its_reader() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (1,))
    early = g.op("Expand", g.constant(np.float32(0.0).reshape(1)), g.constant([1000]))
    wide = g.op("Expand", x, g.constant([1000]))
    narrow = g.op("ReduceSum", wide, g.constant([0]))
    out = g.op("Add", g.op("ReduceMax", early, g.constant([0])), narrow)
    model = model_of([x], [out], g, "early")
    before = live_peak_bytes(list(model.graph))
    schedule(model)
    assert [n.op_type for n in model.graph] == [
        "Expand", "ReduceSum", "Expand", "ReduceMax", "Add"]
    assert (before, live_peak_bytes(list(model.graph))) == (8004, 4008)
