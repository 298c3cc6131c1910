from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.run.schedule import WarmupCosine
from s2a_edge.spec.errors import UsageError


@given(total=st.integers(1, 500), share=st.floats(0, 1), peak=st.floats(1e-6, 10))
def test_it_rises_to_the_peak_then_falls_and_is_positive(
    total: int, share: float, peak: float
) -> None:
    warmup = int(share * total)
    lr = WarmupCosine(peak, total, warmup)
    rates = [lr(step) for step in range(total)]
    assert all(0 < rate <= peak for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(peak)


def test_known_values() -> None:
    lr = WarmupCosine(1.0, total_steps=12, warmup_steps=2)
    assert [lr(0), lr(1), lr(2), lr(7)] == [0.5, 1.0, 1.0, pytest.approx(0.5)]
    assert lr(11) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


@pytest.mark.parametrize("peak", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_no_positive_number_is_refused(peak: float) -> None:
    with pytest.raises(UsageError, match="lr: expected a positive number"):
        WarmupCosine(peak, 10)


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (3, 4), (3, -1)])
def test_a_warm_up_that_does_not_fit_the_run_is_refused(total: int, warmup: int) -> None:
    with pytest.raises(UsageError, match="warm-up"):
        WarmupCosine(1.0, total, warmup)
