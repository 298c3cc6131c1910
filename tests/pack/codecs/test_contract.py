"""What holds for every codec: ONNX equals numpy, sizes are true, finite stays finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pack.codecs.codec_runs import CHOICES, codec_of, run, sample

_SHAPES = st.lists(st.one_of(st.integers(1, 5), st.sampled_from((7, 31, 32, 49, 64))),
                   min_size=1, max_size=4).filter(lambda shape: np.prod(shape) <= 6000)


def _agree(decoded: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for single codes: where x lies on a boundary within rounding, either is right."""
    tolerance = 1e-5 * np.abs(expected) + 1e-6 * np.abs(expected).max()
    differing = int((np.abs(decoded - expected) > tolerance).sum())
    assert differing <= 1 + decoded.size // 500


@pytest.mark.parametrize(("kind", "bits"), CHOICES)
@settings(max_examples=4, deadline=None)
@given(shape=_SHAPES, seed=st.integers(0, 2**32 - 1))
def test_onnx_equals_numpy(kind: str, bits: int, shape: list[int], seed: int) -> None:
    x = sample(kind, bits, tuple(shape), seed)
    codec = codec_of(kind, bits, x)
    result = run(codec, x)
    assert result.decoded.shape == x.shape
    assert result.decoded.dtype == np.float32
    assert result.stored_bytes == codec.stored_bytes(x.shape)
    _agree(result.decoded, codec.reference(x))


_SIGNED = [choice for choice in CHOICES if choice[0] not in ("index", "probability")]
_PATTERNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": lambda x: np.zeros_like(x),
    "constant": lambda x: np.full_like(x, 3.7),
    "offset": lambda x: x + np.float32(1000.0),
    "one outlier": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, 1e6, x),
    "largest": lambda x: np.clip(x, -1, 1) * np.float32(1e38),
    "smallest": lambda x: x * np.float32(1e-38),
    "far negative": lambda x: -np.abs(x) * np.float32(1e30),
}


@pytest.mark.parametrize("pattern", _PATTERNS)
@pytest.mark.parametrize(("kind", "bits"), _SIGNED)
def test_finite_stays_finite(kind: str, bits: int, pattern: str) -> None:
    x = _PATTERNS[pattern](sample(kind, bits, (2, 33, 5))).astype(np.float32)
    codec = codec_of(kind, bits, x)
    decoded = run(codec, x).decoded
    assert np.isfinite(decoded).all()
    if not (kind == "derivative:hardswish" and np.abs(x).max() < 1e-30):
        # HardSwish's cells are symmetric about 0, so 0 is a boundary and either code is right.
        _agree(decoded, codec.reference(x))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("peak", [0.0, 1e-30, 1.0])
def test_rows_without_a_sum_stay_finite(bits: int, peak: float) -> None:
    # A softmax never yields such rows; a masked one may.
    x = np.zeros((3, 5), np.float32)
    x[1, 2] = peak
    decoded = run(codec_of("probability", bits, x), x).decoded
    assert np.isfinite(decoded).all()
    assert decoded[0].tolist() == [0.0] * 5


@pytest.mark.parametrize(("kind", "bits"), CHOICES)
def test_stored_bytes_are_near_the_nominal_bits(kind: str, bits: int) -> None:
    x = sample(kind, bits, (2, 197, 64))
    codec = codec_of(kind, bits, x)
    overhead = 8 * codec.stored_bytes(x.shape) / x.size - codec.bits
    # The dearest metadata: one bfloat16 per row of 64, and two per 197 tokens. Five codes of 3 bits
    # are 15 bits of a 16-bit word.
    unused = 0.2 if codec.bits == 3 else 0.0
    assert 0 <= overhead <= 0.26 + unused
