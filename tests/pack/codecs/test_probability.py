from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.pack.codecs import codec_for
from tests.pack.codecs.codec_runs import run, sample


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 1), (5,), (2, 197)])
def test_rows_sum_to_one(bits: int, shape: tuple[int, ...]) -> None:
    x = sample("probability", bits, shape)
    decoded = run(codec_for("probability", bits, shape), x).decoded
    np.testing.assert_allclose(decoded.sum(-1), 1, rtol=1e-5)
    assert (decoded >= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.integers(2, 40))
def test_error_is_half_a_step_of_the_root(seed: int, bits: int, size: int) -> None:
    p = sample("probability", bits, (6, size), seed).astype(np.float64)
    decoded = codec_for("probability", bits, p.shape).reference(p.astype(np.float32))
    # |root error| <= h / 2, so a square is off by at most h sqrt(p) + h**2 / 4; dividing by the
    # sum, itself off by the sum of these, gives (bound + p * total) / (1 - total).
    h = np.sqrt(p.max(-1, keepdims=True)) / ((1 << bits) - 1)
    bound = h * np.sqrt(p) + h**2 / 4
    total = bound.sum(-1, keepdims=True)
    within = np.abs(decoded - p) <= (bound + p * total) / np.maximum(1 - total, 1e-9) + 1e-6
    assert (within | (total >= 1)).all()


def test_small_probabilities_survive() -> None:
    # 197 nearly equal probabilities with one peak: a linear code of 4 bits drops all but the peak.
    x = np.full((1, 197), 0.5 / 196, np.float32)
    x[0, 0] = 0.5
    decoded = codec_for("probability", 4, x.shape).reference(x)
    assert decoded[0, 1:].min() > 0
    np.testing.assert_allclose(decoded, x, rtol=0.2)
