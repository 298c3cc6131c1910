"""Masks of attention become finite and change nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.normalize.masks import make_masks_finite
from tests.pack.capture.running import run_model

MASK = np.array([[1, 1, 0], [0, 0, 0]], bool)


def _masked(spelling: str) -> ir.Model:
    """Softmax of scores [2, 3] under ``MASK``."""
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (2, 3))
    if spelling == "add":
        scores = g.op("Add", x, g.initializer("mask", np.where(MASK, 0, -np.inf).astype("f")))
    else:
        lowest = g.initializer("lowest", np.array(-np.inf, np.float32))
        scores = g.op("Where", g.initializer("mask", MASK), x, lowest)
    return model_of([x], [g.op("Softmax", scores, axis=-1)], g, "masked")


@pytest.mark.parametrize("spelling", ["add", "where"])
def test_a_row_of_masked_keys_is_uniform_and_others_are_as_before(spelling: str) -> None:
    model = _masked(spelling)
    feeds = {"x": np.array([[1.0, -2.0, 5.0], [3.0, 4.0, 1e4]], np.float32)}
    before = run_model(model, feeds)
    make_masks_finite(model.graph)
    after = run_model(model, feeds)
    np.testing.assert_array_equal(after[0], before[0])
    assert np.isnan(before[1]).all()
    np.testing.assert_allclose(after[1], 1 / 3, rtol=1e-6)


def test_other_constants_stay() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (2, 3))
    y = g.op("Max", g.op("Add", x, g.initializer("bias", np.ones(3, np.float32))),
             g.initializer("floor", np.array(-np.inf, np.float32)))
    model = model_of([x], [y], g, "other")
    make_masks_finite(model.graph)
    assert set(model.graph.initializers) == {"bias", "floor"}
