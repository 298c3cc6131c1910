"""Shares of what trains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from s2a_edge.spec.manifest import Trainable, Tuning
from s2a_edge.spec.tunable import adapter_of, tunable_groups
from tests.spec.bundle_samples import manifest


def test_shares_are_of_all_parameters_with_and_without_the_head() -> None:
    made = manifest()
    prompt = Trainable("b.lrp.A", (2, 3), "lrp_a", "b.lrp", True, 24)
    made = replace(made, trainables=(prompt, *made.trainables),
                   tuning=Tuning(frozen_parameters=30))
    groups = {group.adapter: group for group in tunable_groups(made)}
    # Backbone 30 frozen; prompt 2 x 3; head 5 x 3 and 3.
    assert (groups["lrp"].tensors, groups["lrp"].parameters) == (1, 6)
    assert groups["head"].parameters == 18
    assert groups["all"].parameters == 24
    assert groups["all"].share == pytest.approx(24 / 54)
    assert groups["without the head"].parameters == 6
    assert groups["without the head"].share == pytest.approx(6 / 36)


def test_older_bundles_count_what_is_in_their_weights() -> None:
    groups = {group.adapter: group for group in tunable_groups(manifest())}
    assert groups["all"].share == pytest.approx(18 / 48)  # 6 x 5 frozen, head 5 x 3 and 3
    assert groups["without the head"].share == 0


@pytest.mark.parametrize(("kind", "adapters", "expected"), [
    ("bias", ("bias",), "bias"), ("norm_bias", ("bias", "lora"), "bias"),
    ("norm_bias", ("full",), "full"), ("weight", ("full",), "full"),
    ("norm_weight", ("full",), "full"), ("lsb_down", ("bias", "lsb"), "lsb"),
    ("lrp_b", ("lrp",), "lrp"), ("lora_a", ("lora",), "lora"), ("head_bias", ("full",), "head"),
])
def test_a_kind_belongs_to_an_adapter(kind: str, adapters: tuple[str, ...], expected: str) -> None:
    assert adapter_of(kind, adapters) == expected
