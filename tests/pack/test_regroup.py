"""Slices and Gathers that cover an axis become one Split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.regroup import slices_to_splits
from tests.pack.compiled import check_static, run

SHAPE = (3, 4, 6)
Cut = tuple[int, int]


def _slice(g: GraphBuilder, x: ir.Value, start: int, stop: int, axis: int = 2) -> ir.Value:
    return g.op("Slice", x, g.constant([start]), g.constant([stop]), g.constant([axis]))


def _gather(g: GraphBuilder, x: ir.Value, index: int, axis: int) -> ir.Value:
    return g.op("Gather", x, g.constant(index), axis=axis)


def _regrouped(make: Callable[[GraphBuilder, ir.Value], list[ir.Value]], *, outputs: bool = False,
               ) -> tuple[Counter[str], ir.Model]:
    """Operators after the rewrite, whose results are compared with those before it.

    ``outputs``: the pieces themselves are graph outputs.
    """
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, SHAPE)
    pieces = make(g, g.op("Relu", x))
    ends = pieces if outputs else [g.op("Tanh", p) for p in pieces]
    model = model_of([x], ends, g, "pieces")
    feeds = {"x": np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)}
    before = run(model, feeds)
    slices_to_splits(model)
    ir.passes.common.TopologicalSortPass()(model)
    check_static(model)
    after = run(model, feeds)
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    return Counter(n.op_type for n in model.graph), model


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(np.cumsum).filter(
    lambda stops: bool(stops[-1] < 6)), st.booleans())
def test_slices_without_a_rest_become_one_split(stops: np.ndarray, backwards: bool) -> None:
    bounds = [0, *(int(s) for s in stops), 6]
    cuts = list(pairwise(bounds))

    def make(g: GraphBuilder, x: ir.Value) -> list[ir.Value]:
        return [_slice(g, x, *cut) for cut in (reversed(cuts) if backwards else cuts)]

    found, _ = _regrouped(make)
    assert found["Split"] == 1 and "Slice" not in found


def test_gathers_of_every_row_become_one_split() -> None:
    found, model = _regrouped(lambda g, x: [_gather(g, x, i, 0) for i in (2, 0, 1)])
    assert found["Split"] == 1 and found["Squeeze"] == 3 and "Gather" not in found
    assert all(shape_of(v) == SHAPE[1:] for v in model.graph.outputs)


def test_negative_and_open_bounds_are_understood() -> None:
    found, _ = _regrouped(lambda g, x: [
        _slice(g, x, 0, -4), _slice(g, x, -4, 2**62, -1), ])
    assert found["Split"] == 1 and "Slice" not in found
    found, _ = _regrouped(lambda g, x: [_gather(g, x, 0, -3), _gather(g, x, 1, 0),
                                        _gather(g, x, -1, 0)])
    assert found["Split"] == 1


def _strided(g: GraphBuilder, x: ir.Value, start: int) -> ir.Value:
    return g.op("Slice", x, g.constant([start]), g.constant([6]), g.constant([2]),
                g.constant([2]))


@pytest.mark.parametrize(("make", "why"), [
    (lambda g, x: [_slice(g, x, 0, 2)], "one piece"),
    (lambda g, x: [_slice(g, x, 0, 2), _slice(g, x, 2, 5)], "a rest at the end"),
    (lambda g, x: [_slice(g, x, 1, 2), _slice(g, x, 2, 6)], "a rest at the start"),
    (lambda g, x: [_slice(g, x, 0, 4), _slice(g, x, 2, 6)], "an overlap"),
    (lambda g, x: [_slice(g, x, 0, 3), _slice(g, x, 3, 6), _slice(g, x, 3, 6)], "a piece twice"),
    (lambda g, x: [_slice(g, x, 0, 3), _slice(g, x, 3, 6), g.op("Neg", x)], "another reader"),
    (lambda g, x: [_slice(g, x, 0, 3), _slice(g, x, 2, 4, 1)], "two axes"),
    (lambda g, x: [_strided(g, x, 0), _strided(g, x, 1)], "strides"),
])
def test_anything_else_stays_as_it_is(make: Callable[[GraphBuilder, ir.Value], list[ir.Value]],
                                      why: str) -> None:
    found, _ = _regrouped(make)
    assert "Split" not in found, why


@pytest.mark.parametrize("make", [
    lambda g, x: [_slice(g, x, 0, 3), _slice(g, x, 3, 6)],
    lambda g, x: [_gather(g, x, i, 0) for i in range(3)],
])
def test_pieces_that_are_results_keep_their_names(
        make: Callable[[GraphBuilder, ir.Value], list[ir.Value]]) -> None:
    _regrouped(make, outputs=True)


def test_names_stay_unique() -> None:
    def make(g: GraphBuilder, x: ir.Value) -> list[ir.Value]:
        y = g.op("Neg", x)
        return [*(_slice(g, x, a, a + 3) for a in (0, 3)),
                *(_gather(g, y, i, 0) for i in range(3))]

    _, model = _regrouped(make)
    values = [v.name for n in model.graph for v in n.outputs] + list(model.graph.initializers)
    nodes = [n.name for n in model.graph]
    assert len(set(values)) == len(values) and len(set(nodes)) == len(nodes)
