"""Gradients in half precision: within what was measured, and no worse than PyTorch's autocast."""

from __future__ import annotations

from statistics import fmean

import pytest

from tests.parity.half_steps import errors
from tests.parity.half_tolerances import HALF

_BATCHES = 3
# A mean over fewer batches than were measured: their spread is wider than its own.
_ABOVE_AUTOCAST = 2.0


def _mean(name: str, precision: str, bits: int) -> float:
    return fmean(errors(name, precision, bits, seed) for seed in range(_BATCHES))


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", [
    "tiny_vit", "tiny_resnet", pytest.param("vit_s", marks=pytest.mark.parity),
    pytest.param("resnet", marks=pytest.mark.parity)])
def test_gradients_stay_within_measured_bounds(name: str, precision: str, bits: int) -> None:
    assert _mean(name, precision, bits) < HALF[name, precision, bits].bound


@pytest.mark.parametrize(("name", "precision"), sorted({(n, p) for n, p, _ in HALF}))
def test_what_was_measured_is_no_more_than_autocast_costs(name: str, precision: str) -> None:
    """Nothing compressed: then it is the format alone."""
    ours, theirs = HALF[name, precision, 32], HALF[name, precision, 0]
    assert ours.mean < _ABOVE_AUTOCAST * theirs.mean


def test_the_formats_show_where_nothing_else_does() -> None:
    """A test of the test: the float32 step itself is far below every bound."""
    assert _mean("tiny_vit", "fp16", 32) > 1e-4
