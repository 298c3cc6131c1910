"""Settings of the whole test suite."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Two cores, shared with whatever else runs: no deadline per example, and the same examples each
# run, so that a failure seen once is seen again.
settings.register_profile(
    "s2a", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("s2a")

# Model zoos must not look for a network; every weight the tests use is installed or made by them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
