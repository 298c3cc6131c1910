"""Rounding that makes up for its errors: products change less than with the nearest codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.calibration import Samples
from s2a_edge.pack.frozen.quantize import Coded, encode
from s2a_edge.pack.frozen.second_moments import Moment, second_moments
from s2a_edge.spec.frozen_weights import CodedWeight, decode_run

_ROWS, _COLUMNS = 128, 96


def _inputs(size: int, seed: int = 0) -> np.ndarray:
    """Rows that are correlated, as activations are: most of them lies in few directions."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((2000, 12)) @ rng.standard_normal((12, size))
    return (mixed + 0.3 * rng.standard_normal((2000, size))).astype(np.float32)


def _decoded(coded: Coded) -> np.ndarray:
    run = CodedWeight("w", 0, coded.shape, "int4", "c", "s", coded.block, coded.step)
    return decode_run(run, coded.codes, coded.scales)


def _error(x: np.ndarray, values: np.ndarray, coded: Coded, axis: int) -> float:
    matrices = (values, _decoded(coded)) if axis == 0 else (values.T, _decoded(coded).T)
    true, got = (x @ m for m in matrices)
    return float(np.linalg.norm(got - true) / np.linalg.norm(true))


@pytest.mark.parametrize("axis", [0, 1])
def test_products_change_less_than_half_as_much(axis: int) -> None:
    values = np.random.default_rng(5).standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    x, unseen = (_inputs(values.shape[axis]), _inputs(values.shape[axis])[::-1])
    nearest = encode(values, "int4")
    made = encode(values, "int4", moment=Moment(axis, x.T @ x / np.float32(len(x))))
    assert nearest is not None and made is not None
    assert (made.codec, made.block, made.step) == ("int4", nearest.block, nearest.step)
    assert made.codes.shape == nearest.codes.shape
    assert made.scales is not None and nearest.scales is not None
    assert made.scales.shape == nearest.scales.shape
    assert _error(unseen, values, made, axis) < 0.5 * _error(unseen, values, nearest, axis)


def test_uncorrelated_inputs_leave_the_nearest_codes() -> None:
    """Nothing can be made up for; scales are searched in the same way."""
    values = np.random.default_rng(6).standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    nearest, made = encode(values, "int4"), encode(
        values, "int4", moment=Moment(1, np.eye(_COLUMNS, dtype=np.float32)))
    assert nearest is not None and made is not None
    np.testing.assert_allclose(_decoded(made), _decoded(nearest), atol=1e-6)


@pytest.mark.parametrize("moments", [np.zeros((_ROWS, _ROWS)), np.full((_ROWS, _ROWS), np.nan)])
def test_moments_without_an_inverse_leave_the_nearest_codes(moments: np.ndarray) -> None:
    values = np.random.default_rng(7).standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    nearest = encode(values, "int4")
    made = encode(values, "int4", moment=Moment(0, moments.astype(np.float32)))
    assert nearest is not None and made is not None
    np.testing.assert_array_equal(made.codes, nearest.codes)


def test_moments_are_those_of_what_each_matrix_is_multiplied_with() -> None:
    g = GraphBuilder()
    rng = np.random.default_rng(8)
    x = g.input("x", ir.DataType.FLOAT, (2, 5, 16))
    first, second = (rng.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
    hidden = g.op("Relu", g.op("MatMul", x, g.initializer("first", first)))
    rows = g.op("Reshape", hidden, g.constant([10, 16]))
    twice = g.initializer("twice", second.copy())
    out = g.op("Gemm", rows, g.initializer("second", second), transB=1)
    out = g.op("MatMul", g.op("MatMul", out, twice), twice)
    data = rng.standard_normal((6, 5, 16)).astype(np.float32)
    made = second_moments(model_of([x], [out], g, "eval"), Samples({"x": data}, None, "test", 0),
                          {}, threads=1)
    assert {name: moment.axis for name, moment in made.items()} == {"first": 0, "second": 1}
    flat = data.reshape(-1, 16)
    relu = np.maximum(flat @ first, 0)
    for name, read in (("first", flat), ("second", relu)):
        np.testing.assert_allclose(made[name].values, read.T @ read / len(read), rtol=1e-4,
                                   atol=1e-5)
