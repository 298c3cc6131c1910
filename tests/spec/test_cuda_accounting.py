"""One DRAM for both: what CUDA needs of every board, from the profile that is shipped for it."""

from __future__ import annotations

import pytest

from s2a_edge.spec.device_profile import list_profiles, training_budget
from s2a_edge.spec.profile_facts import DeviceProfile
from s2a_edge.spec.requirement import LineKind, Setting, requirement, weights_bytes
from s2a_edge.spec.units import GIB, MIB
from tests.spec.test_budget import manifest

_JETSONS = [profile for profile in list_profiles() if profile.kind == "jetson"]
_AVAILABLE = 3 * GIB  # as read on a board; not every profile knows its typical MemTotal


@pytest.mark.parametrize("profile", _JETSONS, ids=lambda profile: profile.name)
def test_a_jetsons_budget_pays_for_cuda_once(profile: DeviceProfile) -> None:
    """From its profile by a smaller budget; measured there, by a line of what is needed."""
    on_cpu = training_budget(profile, available_bytes=_AVAILABLE, provider="cpu").budget_bytes
    planned = training_budget(profile, available_bytes=_AVAILABLE, provider="cuda")
    overhead_bytes = on_cpu - planned.budget_bytes
    assert overhead_bytes == -planned.lines[-1].size_bytes > 100 * 10**6
    bundle = manifest({1: MIB})
    plain = requirement(bundle, setting=Setting(provider="cuda"))
    measured = requirement(
        bundle, setting=Setting(provider="cuda", cuda_context_bytes=overhead_bytes))
    left = planned.budget_bytes - plain.total_bytes
    assert left == on_cpu - measured.total_bytes


@pytest.mark.parametrize("evaluation", [True, False])
def test_a_weight_is_never_counted_as_mapped_and_as_copied(evaluation: bool) -> None:
    bundle = manifest({1: MIB})
    setting = Setting(provider="cuda", evaluation=evaluation)
    weights = requirement(bundle, setting=setting).of_kind(LineKind.WEIGHTS)
    largest = max(weight.size_bytes for weight in bundle.weights)
    assert weights == (2 if evaluation else 1) * weights_bytes(bundle) + largest
