"""What a user may ask of the search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from s2a_edge.spec.errors import UsageError

TimesFrom = Literal["host", "device"]

SEARCHED = ("micro_batches", "bits", "attention", "recompute", "frozen", "blocks")
"""Fields of ``PackOptions`` that the search chooses, unless they are fixed."""


@dataclass(frozen=True)
class SearchOptions:
    """How a configuration is searched.

    Attributes:
        fixed: those of ``SEARCHED`` that the user has chosen.
        max_gradient_error: the most that codes of saved values may change the gradients, relative,
            all trainables as one vector. 0.1 lies above what 4 bits cause in the networks of
            BENCHMARKS.md (1 to 6 %) and below what 2 bits do. Fixed bits are not held to it.
        times_from: ``host``: step times from timed runs here; ``device``: from the peak rates of
            the device profile's GPU.
    """

    fixed: frozenset[str] = frozenset()
    max_gradient_error: float = 0.1
    times_from: TimesFrom = "host"

    def __post_init__(self) -> None:
        checks = [
            ("--max-gradient-error", math.isfinite(self.max_gradient_error)
             and self.max_gradient_error > 0, "a number above 0", str(self.max_gradient_error)),
            ("--times-from", self.times_from in get_args(TimesFrom),
             " or ".join(get_args(TimesFrom)), self.times_from),
            ("--auto", self.fixed <= set(SEARCHED), f"fixed fields out of {', '.join(SEARCHED)}",
             ", ".join(sorted(self.fixed))),
        ]
        for where, holds, expected, got in checks:
            if not holds:
                raise UsageError(where=where, expected=expected, got=got,
                                 todo="correct the flag")


__all__ = ["SEARCHED", "SearchOptions", "TimesFrom"]
