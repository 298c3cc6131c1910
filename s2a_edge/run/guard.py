"""Enforces the memory budget while training runs.

The runtime's arena has a hard limit of its own; this watches everything else: the process's
resident memory as a whole, and what is left around it (:mod:`s2a_edge.run.headroom`). A thread
samples both and ends the run in progress the moment one is out of bounds; between runs the kernel's
own peak is checked, which misses nothing in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from s2a_edge.run.headroom import HeadroomWatch
from s2a_edge.run.process_memory import read_memory, read_sizes, reset_peak
from s2a_edge.spec.errors import BudgetError, S2AError
from s2a_edge.spec.units import format_bytes

SAMPLE_INTERVAL_S = 0.02
AROUND_EVERY = 10
"""Samples of the process between two looks around it, which take ten files instead of one."""
_STATUS = Path("/proc/self/status")


class MemoryGuard:
    """Watches resident memory against a budget, as a context manager.

    Args:
        budget_bytes: most that may be resident; None: only keep the peak.
        device_bytes: memory of the same budget that the process's resident size does not show
            (the CUDA arena of a board whose GPU shares its memory).
        on_exceeded: called from the watching thread, with the error, once until :meth:`rearm`;
            ends the run.
        interval_s: time between two samples of the watching thread.
        headroom: looks at what is left around the process; None: nothing does.

    Raises:
        DeviceError: the platform does not tell a process's memory.
    """

    def __init__(
        self,
        budget_bytes: int | None,
        *,
        device_bytes: int = 0,
        on_exceeded: Callable[[S2AError], None] | None = None,
        interval_s: float = SAMPLE_INTERVAL_S,
        headroom: HeadroomWatch | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._device_bytes = device_bytes
        self._headroom = headroom
        self._exceeded: BudgetError | None = None
        self._on_exceeded = on_exceeded
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._peak_bytes = read_memory().rss_bytes + device_bytes
        self._peak_before_bytes = 0  # of the same block, before it was rearmed
        self._kernel_peak = reset_peak()

    def __enter__(self) -> MemoryGuard:
        self._peak_bytes = 0
        self.rearm(self._device_bytes)
        self._peak_before_bytes = 0
        self._stop.clear()
        watched = self.budget_bytes is not None or self._headroom is not None
        if watched and self._on_exceeded is not None:
            self._thread = threading.Thread(target=self._watch, name="memory-guard", daemon=True)
            self._thread.start()
        return self

    def rearm(self, device_bytes: int) -> None:
        """Memory was given back: watch on, and count the peak that is checked from here.

        Args:
            device_bytes: as of the constructor, for what runs from here on.
        """
        self._peak_before_bytes = max(self._peak_before_bytes, self._peak_bytes)
        self._device_bytes = device_bytes
        self._kernel_peak = reset_peak()
        self._peak_bytes = 0
        if self._headroom is not None:
            self._headroom.settle()
        self._exceeded = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def peak_bytes(self) -> int:
        """The most that was resident since the guard was made or its block last entered."""
        self.resident_bytes()
        return max(self._peak_bytes, self._peak_before_bytes)

    def resident_bytes(self) -> int:
        """What is resident now; keeps the peak."""
        status = read_sizes(_STATUS)
        now_bytes = status.get("VmRSS", 0)
        # A kernel that does not let the peak start anew would count what was before the guard.
        kernel_peak_bytes = status.get("VmHWM", 0) if self._kernel_peak else 0
        peak_bytes = max(kernel_peak_bytes, now_bytes) + self._device_bytes
        self._peak_bytes = max(self._peak_bytes, peak_bytes)
        return now_bytes + self._device_bytes

    def check(self, where: str) -> None:
        """Compare the peak so far with the budget.

        Args:
            where: for the error: epoch and step.

        Raises:
            BudgetError: more was resident than the budget allows, or too little was left around.
        """
        self.resident_bytes()
        if self.budget_bytes is not None and self._peak_bytes > self.budget_bytes:
            raise over_budget(where, self._peak_bytes, self.budget_bytes)
        if self._exceeded is not None:
            raise self._exceeded

    def _watch(self) -> None:
        assert self._on_exceeded is not None
        sample = 0
        while not self._stop.wait(self._interval_s):
            if self._exceeded is not None:
                continue  # told, and not rearmed yet
            error = self._look(around=sample % AROUND_EVERY == 0)
            sample += 1
            if error is not None:
                self._exceeded = error
                self._on_exceeded(error)

    def _look(self, *, around: bool) -> BudgetError | None:
        used_bytes = self.resident_bytes()
        if self.budget_bytes is not None and used_bytes > self.budget_bytes:
            return over_budget("memory guard", used_bytes, self.budget_bytes)
        shortage = self._headroom.shortage() if self._headroom is not None and around else None
        return None if shortage is None else shortage.error("memory guard")


def over_budget(where: str, used_bytes: int, budget_bytes: int) -> BudgetError:
    """The error of a process that holds more than its budget."""
    missing_bytes = used_bytes - budget_bytes
    return BudgetError(
        where=where,
        expected=f"at most {format_bytes(budget_bytes)} of memory",
        got=f"{format_bytes(used_bytes)}, {format_bytes(missing_bytes)} too much",
        todo="resume with a smaller --micro-batch or a larger --budget; the last checkpoint is "
        "intact",
        missing_bytes=missing_bytes,
    )
