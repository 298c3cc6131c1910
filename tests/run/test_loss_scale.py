"""The scale of gradients: when it shrinks, when it grows, and how a checkpoint keeps it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.run.loss_scale import (
    GROWTH_INTERVAL,
    INITIAL_SCALE,
    LARGEST_SCALE,
    SMALLEST_SCALE,
    LossScale,
)
from s2a_edge.spec import strict_json
from s2a_edge.spec.errors import BundleError


def test_an_overflow_halves_it_and_is_counted() -> None:
    scale = LossScale().after_good_step().after_overflow()
    assert scale == LossScale(INITIAL_SCALE / 2, good_steps=0, skipped_steps=1)


def test_it_doubles_after_so_many_good_steps_and_not_before() -> None:
    scale = LossScale(skipped_steps=3)
    for _ in range(GROWTH_INTERVAL - 1):
        scale = scale.after_good_step()
    assert (scale.value, scale.good_steps) == (INITIAL_SCALE, GROWTH_INTERVAL - 1)
    assert scale.after_good_step() == LossScale(2 * INITIAL_SCALE, 0, 3)


def test_an_overflow_begins_the_count_anew() -> None:
    scale = LossScale(good_steps=GROWTH_INTERVAL - 1).after_overflow()
    assert scale.after_good_step().value == INITIAL_SCALE / 2


@given(st.lists(st.booleans(), max_size=80), st.sampled_from([1.0, 2.0**16, 2.0**24]),
       st.sampled_from([0, GROWTH_INTERVAL - 1]))
def test_it_stays_a_power_of_two_within_its_bounds(good: list[bool], start: float, done: int,
                                                   ) -> None:
    scale = LossScale(start, done)
    for finite in good:
        scale = scale.after_good_step() if finite else scale.after_overflow()
        assert SMALLEST_SCALE <= scale.value <= LARGEST_SCALE
        assert float.hex(scale.value).startswith("0x1.0000000000000p")
    assert scale.skipped_steps == good.count(False)


def test_only_the_smallest_is_exhausted() -> None:
    assert LossScale(SMALLEST_SCALE).exhausted and not LossScale(2 * SMALLEST_SCALE).exhausted


def test_a_checkpoint_holds_it_and_refuses_one_out_of_range() -> None:
    scale = LossScale(2.0**10, 7, 6)
    value = json.loads(json.dumps(strict_json.plain(scale)))
    assert strict_json.read(LossScale, value, file="checkpoint") == scale
    with pytest.raises(BundleError, match="value"):
        strict_json.read(LossScale, {**value, "value": 0.5}, file="checkpoint")
