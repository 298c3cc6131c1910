"""Codecs of values in float16, over all of its range: nothing decodes to infinity, scales hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.codecs import SCALED, codec_for
from s2a_edge.pack.graph import dtype_of
from s2a_edge.pack.half.convert import half_model
from s2a_edge.pack.half.formats import FP16
from s2a_edge.pack.half.twin import float32_twin
from s2a_edge.spec.lowbit import FLOAT16_MAX, bfloat16_below, round_to_bfloat16
from tests.pack.compiled import run

_FLOAT = ir.DataType.FLOAT
_SHAPE = (2, 40, 6)
_CHOICES = [(kind, bits) for kind in ("normalized", "activation") for bits in (2, 3, 4, 8, 16)]
# Steps by which a value may be off, of its group's span in so many codes: rounding, the outermost
# levels that lie inside at 2 and 3 bits, and near 65504 the scale that is held below it.
_STEPS = 1.6


def _decoded(kind: str, bits: int, values: np.ndarray) -> np.ndarray:
    """Through the codec as a step in float16 has it: x in half, and back in half."""
    g = GraphBuilder(half=True)
    x = g.input("x", _FLOAT, values.shape)
    value = g.op("MatMul", x, g.constant(np.eye(values.shape[-1], dtype=np.float32)))
    codec = codec_for(kind, bits, values.shape)
    with g.float32(isinstance(codec, SCALED)):
        decoded = codec.decode(g, codec.encode(g, value), values.shape)
    y = g.op("MatMul", decoded, g.constant(np.eye(values.shape[-1], dtype=np.float32)))
    y.name = "y"
    made = half_model(model_of([x], [y], g, "codec"), FP16)
    assert any(dtype_of(v) == FP16.dtype for n in made.graph for v in n.outputs)
    return run(float32_twin(made, FP16), {"x": values})["y"]


@pytest.mark.parametrize(("kind", "bits"), _CHOICES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-24, 15),
       offset=st.sampled_from([0.0, 0.5, -1.0]))
def test_every_magnitude_of_float16_survives(kind: str, bits: int, seed: int, exponent: int,
                                             offset: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.uniform(-1, 1, _SHAPE) + offset) * 2.0**exponent
    values = np.clip(values, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).astype(np.float32)
    got = _decoded(kind, bits, values)
    assert np.isfinite(got).all()
    span = max(float(np.abs(values).max()), 2.0**-24) * 2
    step = span / (2 ** min(bits, 11) - 1)
    assert np.abs(got - values).max() <= _STEPS * step + 2.0**-23


@pytest.mark.parametrize(("kind", "bits"), _CHOICES)
@pytest.mark.parametrize("ends", [(FLOAT16_MAX, FLOAT16_MAX), (-FLOAT16_MAX, -FLOAT16_MAX),
                                  (-FLOAT16_MAX, FLOAT16_MAX), (65000.0, FLOAT16_MAX),
                                  (0.0, FLOAT16_MAX), (-FLOAT16_MAX, 0.0)])
def test_the_largest_numbers_stay_numbers(kind: str, bits: int, ends: tuple[float, float]) -> None:
    """Scales are rounded to bfloat16, and up: without a bound 65504 would decode to infinity."""
    values = np.random.default_rng(0).uniform(*ends, _SHAPE).astype(np.float32)
    values[:, 0], values[:, 1] = ends
    values = values.astype(np.float16).astype(np.float32)
    got = _decoded(kind, bits, values)
    assert np.isfinite(got).all()
    step = 2 * FLOAT16_MAX / (2 ** min(bits, 11) - 1)
    assert np.abs(got - values).max() <= _STEPS * step


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 1.0, 10.0, 60.0]))
def test_probabilities_of_long_rows_sum_to_one(bits: int, seed: int, spread: float) -> None:
    """600 equal ones: a sum of squared codes would be beyond float16."""
    scores = np.random.default_rng(seed).standard_normal((2, 600)) * spread
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).astype(np.float16).astype(np.float32)
    got = _decoded("probability", bits, p)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got.sum(-1), 1.0, rtol=5e-3)
    assert np.abs(got - p).max() <= 1.0 if bits < 4 else 0.2


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_the_bfloat16_below_is_one_and_the_largest(value: float) -> None:
    below = bfloat16_below(value)
    assert below <= value
    assert round_to_bfloat16(np.array([below], np.float32))[0] == below
    assert below * (1 + 2.0**-7) > value
