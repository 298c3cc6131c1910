"""Codecs with scales: which elements share one, and how far off a decoded value may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.pack.codecs import codec_for
from s2a_edge.pack.codecs.group import SymmetricCodec
from s2a_edge.pack.codecs.scales import Grouping, row_size
from tests.pack.codecs.codec_runs import run, sample

# A scale is rounded to bfloat16, by at most 2**-8 of it; float32 arithmetic adds less than 2**-20.
_ROUNDING = 1 + 2**-8 + 2**-20


@pytest.mark.parametrize(("shape", "grouping"), [
    ((8, 197, 768), (8, 197, 768)),
    ((8, 12, 197, 64), (96, 197, 64)),
    ((4, 1024, 96), (16, 256, 96)),  # many tokens: the largest divisor up to 256
    ((4, 499, 96), (4, 499, 96)),  # prime: all of them
    ((8, 14, 14, 384), (8, 196, 384)),  # channels last
    ((8, 384, 14, 14), (18816, 32, 1)),  # channels first: neighbours
    ((2, 3, 5), (1, 30, 1)),
    ((7, 11), (3, 32, 1)),
    ((37,), (1, 37, 1)),
    ((67,), (3, 32, 1)),  # prime: padded
    ((1,), (1, 32, 1)),
    ((), (1, 32, 1)),
])
def test_groups(shape: tuple[int, ...], grouping: tuple[int, ...]) -> None:
    assert Grouping.of(shape).shape == grouping


@given(st.lists(st.integers(1, 80), max_size=4))
def test_groups_cover_a_value_with_less_than_one_group_of_padding(shape: list[int]) -> None:
    grouping = Grouping.of(tuple(shape))
    padding = grouping.elements - int(np.prod(shape, dtype=np.int64))
    assert 0 <= padding < grouping.size


@pytest.mark.parametrize(("shape", "size"), [
    ((8, 197, 768), 768), ((8, 12, 197, 64), 64), ((8, 64, 7, 7), 49), ((3, 5), 15), ((), 1)])
def test_rows(shape: tuple[int, ...], size: int) -> None:
    assert row_size(shape) == size


def _groups(x: np.ndarray) -> np.ndarray:
    return Grouping.of(x.shape).view_array(x)


_VALUES = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([(2, 40, 6), (5, 33), (96,), (3,)]),
                    st.sampled_from([0.0, 5.0, -300.0]))


@settings(max_examples=20, deadline=None)
@given(_VALUES)
def test_symmetric_error_is_half_a_step(values: tuple[int, tuple[int, ...], float]) -> None:
    seed, shape, offset = values
    x = sample("normalized", 4, shape, seed) + np.float32(offset)
    error = np.abs(codec_for("normalized", 4, shape).reference(x) - x)
    step = np.abs(_groups(x)).max(1, keepdims=True) / 7
    assert (_groups(error) <= step / 2 * _ROUNDING).all()


@settings(max_examples=20, deadline=None)
@given(_VALUES, st.sampled_from([2, 3, 4]))
def test_asymmetric_error_is_half_a_step(values: tuple[int, tuple[int, ...], float],
                                         bits: int) -> None:
    seed, shape, offset = values
    x = sample("activation", bits, shape, seed) + np.float32(offset)
    error = np.abs(codec_for("activation", bits, shape).reference(x) - x)
    groups = _groups(x)
    high, low = groups.max(1, keepdims=True), groups.min(1, keepdims=True)
    # Rounding moves the centre by 2**-8 of it; the step grows by as much.
    reach = (high - low) / 2 + np.abs(high + low) / 2 * 2**-8
    step = reach / {4: 7.5, 3: 3.5 / 0.9, 2: 1.875}[bits]
    assert (_groups(error) <= np.maximum(step / 2 * _ROUNDING, np.abs(groups) * 2**-16)).all()


@settings(max_examples=20, deadline=None)
@given(_VALUES)
def test_eight_bits_with_a_scale_for_each_channel(values: tuple[int, tuple[int, ...], float],
                                                  ) -> None:
    seed, shape, offset = values
    x = sample("normalized", 8, shape, seed) + np.float32(offset)
    error = np.abs(SymmetricCodec(8).reference(x) - x)
    step = np.abs(_groups(x)).max(1, keepdims=True) / 127
    assert (_groups(error) <= step / 2 * _ROUNDING).all()
    np.testing.assert_allclose(run(SymmetricCodec(8), x).decoded, SymmetricCodec(8).reference(x),
                               atol=float(step.max()) * 1e-3)


@settings(max_examples=20, deadline=None)
@given(_VALUES)
def test_eight_bit_error_is_half_a_step(values: tuple[int, tuple[int, ...], float]) -> None:
    seed, shape, offset = values
    x = sample("activation", 8, shape, seed) + np.float32(offset)
    error = np.abs(codec_for("activation", 8, shape).reference(x) - x)
    rows = x.reshape(-1, row_size(shape))
    step = np.abs(rows).max(1, keepdims=True) / 127
    assert (error.reshape(rows.shape) <= step / 2 * _ROUNDING).all()


def test_zero_is_exact_where_codes_are_symmetric() -> None:
    x = sample("normalized", 4, (2, 64, 8))
    x[:, ::3] = 0
    decoded = codec_for("normalized", 4, x.shape).reference(x)
    assert (decoded[:, ::3] == 0).all()


def test_an_outlier_channel_does_not_harm_the_others() -> None:
    x = sample("normalized", 4, (4, 64, 48))
    quiet = codec_for("normalized", 4, x.shape).reference(x)
    x[..., 7] *= 1000
    loud = codec_for("normalized", 4, x.shape).reference(x)
    np.testing.assert_array_equal(np.delete(loud, 7, -1), np.delete(quiet, 7, -1))


def test_half_precision_saturates() -> None:
    x = np.array([1e6, -1e6, 65504.0, 0.1], np.float32)
    decoded = codec_for("activation", 16, x.shape).reference(x)
    assert decoded.tolist() == [65504.0, -65504.0, 65504.0, float(np.float16(0.1))]
