"""The factor on gradients in float16, and how it follows from overflows.

Gradients of float16 graphs are multiplied by a scale, so that the small ones are no zeros; where
the largest become infinite, the optimizer step is left out and the scale halved, and after enough
good steps it is doubled (dynamic loss scaling, arXiv 1710.03740, section 3.2). Constants are those
of ``torch.amp.GradScaler``; powers of two, so that scaling and its undoing are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from s2a_edge.spec.strict_json import Span

INITIAL_SCALE = 2.0**16
GROWTH_FACTOR, BACKOFF_FACTOR = 2.0, 0.5
GROWTH_INTERVAL = 2000
# The largest scale of Apex and Megatron-LM: beyond it nothing is gained.
LARGEST_SCALE = 2.0**24
# Below 1 it is not the scaling that overflows, but the model.
SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class LossScale:
    """The scale and what led to it; a checkpoint holds it.

    Attributes:
        value: by which the gradient of the loss is multiplied.
        good_steps: optimizer steps since it last changed.
        skipped_steps: optimizer steps left out in all.
    """

    value: Annotated[float, Span(SMALLEST_SCALE, LARGEST_SCALE)] = INITIAL_SCALE
    good_steps: Annotated[int, Span(0, GROWTH_INTERVAL)] = 0
    skipped_steps: Annotated[int, Span(0, 2**53)] = 0

    @property
    def exhausted(self) -> bool:
        """Whether it can become no smaller."""
        return self.value <= SMALLEST_SCALE

    def after_good_step(self) -> LossScale:
        """The scale after a step whose gradients were finite."""
        good = self.good_steps + 1
        if good < GROWTH_INTERVAL:
            return replace(self, good_steps=good)
        return replace(self, value=min(self.value * GROWTH_FACTOR, LARGEST_SCALE), good_steps=0)

    def after_overflow(self) -> LossScale:
        """The scale after a step that was left out."""
        value = max(self.value * BACKOFF_FACTOR, SMALLEST_SCALE)
        return LossScale(value, 0, self.skipped_steps + 1)


__all__ = ["GROWTH_INTERVAL", "INITIAL_SCALE", "LARGEST_SCALE", "SMALLEST_SCALE", "LossScale"]
