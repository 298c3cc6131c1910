from __future__ import annotations

import threading

import numpy as np
import pytest

from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.process_memory import read_memory
from s2a_edge.spec.errors import BudgetError, S2AError
from s2a_edge.spec.units import MIB


def test_within_the_budget_nothing_happens() -> None:
    budget_bytes = read_memory().rss_bytes + 256 * MIB
    with MemoryGuard(budget_bytes, on_exceeded=lambda error: pytest.fail(str(error))) as guard:
        guard.check("step 1")
        assert 0 < guard.resident_bytes() <= guard.peak_bytes < budget_bytes


def test_a_peak_between_two_checks_is_not_missed() -> None:
    budget_bytes = read_memory().rss_bytes + 32 * MIB
    with MemoryGuard(budget_bytes) as guard:
        guard.check("before")
        ballast = np.ones(64 * MIB, np.uint8)
        assert ballast[-1] == 1
        del ballast
        with pytest.raises(BudgetError, match="epoch 1, step 2: expected at most") as caught:
            guard.check("epoch 1, step 2")
    assert 16 * MIB < caught.value.missing_bytes < 64 * MIB
    assert caught.value.exit_code == 3


def test_the_thread_tells_while_a_run_is_in_progress() -> None:
    told, errors = threading.Event(), []

    def on_exceeded(error: S2AError) -> None:
        errors.append(error)
        told.set()

    budget_bytes = read_memory().rss_bytes + 32 * MIB
    with MemoryGuard(budget_bytes, on_exceeded=on_exceeded, interval_s=0.001):
        ballast = np.ones(64 * MIB, np.uint8)
        assert told.wait(timeout=30)
        del ballast
    assert len(errors) == 1  # once, however long it lasts
    assert isinstance(errors[0], BudgetError)


def test_no_thread_is_left_behind() -> None:
    with MemoryGuard(read_memory().rss_bytes + 256 * MIB, on_exceeded=lambda error: None):
        assert any(t.name == "memory-guard" for t in threading.enumerate())
    assert not any(t.name == "memory-guard" for t in threading.enumerate())


def test_without_a_budget_only_the_peak_is_kept() -> None:
    with MemoryGuard(None) as guard:
        guard.check("step 1")
        assert guard.peak_bytes > 0


def test_memory_of_a_device_that_shares_it_counts() -> None:
    budget_bytes = read_memory().rss_bytes + 256 * MIB
    with (
        MemoryGuard(budget_bytes, device_bytes=512 * MIB) as guard,
        pytest.raises(BudgetError),
    ):
        guard.check("step 1")
