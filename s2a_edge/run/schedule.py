"""The learning rate as a pure function of the step: linear warm-up, then a cosine to zero.

Loshchilov & Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017 (one cycle);
Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.2 (linear warm-up).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from s2a_edge.spec.errors import UsageError


@dataclass(frozen=True)
class WarmupCosine:
    """Learning rate of each optimizer step.

    Attributes:
        peak_lr: reached at the end of the warm-up.
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps of the linear rise; 0: start at the peak.

    Raises:
        UsageError: a rate that is not a positive number, or no steps.
    """

    peak_lr: float
    total_steps: int
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.peak_lr) and self.peak_lr > 0):
            raise UsageError(
                where="lr",
                expected="a positive number",
                got=str(self.peak_lr),
                todo="give a learning rate such as 1e-3",
            )
        if not 0 <= self.warmup_steps <= self.total_steps or self.total_steps < 1:
            raise UsageError(
                where="warm-up",
                expected=f"0 to {self.total_steps} steps, the length of the run",
                got=str(self.warmup_steps),
                todo="give fewer warm-up epochs or more epochs",
            )

    def __call__(self, step: int) -> float:
        """Rate of step 0, 1, ..., total_steps - 1; never 0 within the run."""
        if step < self.warmup_steps:
            return self.peak_lr * ((step + 1) / self.warmup_steps)
        decay_steps = self.total_steps - self.warmup_steps
        progress = (step - self.warmup_steps) / decay_steps if decay_steps else 1.0
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
