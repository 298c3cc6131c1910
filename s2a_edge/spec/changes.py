"""What would make training fit, cheapest first: other micro-batches of the same bundle.

Their memory and time were measured when the bundle was packed, each in a process of its own, so a
change comes with what it does, not with a guess. Changes that need another bundle are measured by
``pack`` itself, which can compile them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import (
    DEFAULT_SETTING,
    How,
    Requirement,
    Setting,
    micro_batches,
    requirement,
)
from s2a_edge.spec.units import format_bytes

MOST_CHANGES = 3


@dataclass(frozen=True)
class Change:
    """One change and its effect.

    Attributes:
        flags: what to give the command, exactly.
        command: ``train`` or ``pack``.
        total_bytes: what training needs then.
        saves_bytes: what it needs less.
        slower: time of an optimizer step, as a multiple of the present one; None: not measured.
        fits: it is enough.
        how: how the effect is known.
    """

    flags: str
    command: str
    total_bytes: int
    saves_bytes: int
    slower: float | None
    fits: bool
    how: How

    def as_dict(self) -> dict[str, object]:
        """The change as JSON-ready values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """``--micro-batch 2 (50.4 MiB less, 1.08 x the time, measured at pack time)``."""
        time = "" if self.slower is None else f"{self.slower:.2f} x the time, "
        word = "less" if self.saves_bytes >= 0 else "more"
        size = format_bytes(abs(self.saves_bytes))
        return f"{self.flags} ({size} {word}, {time}{self.how})"


def smaller_micro_batches(
    manifest: Manifest,
    needed: Requirement,
    budget_bytes: int,
    *,
    setting: Setting = DEFAULT_SETTING,
) -> tuple[Change, ...]:
    """The packed micro-batches below that of ``needed``, cheapest first; see :func:`cheapest`."""
    graphs = {graph.batch: graph for graph in manifest.graphs.train}

    def sample_ms(batch: int) -> float:
        return graphs[batch].evidence.step_ms / batch

    found = []
    for batch in micro_batches(manifest):
        if batch < needed.micro_batch:
            other = requirement(manifest, micro_batch=batch, setting=setting)
            now_ms = sample_ms(needed.micro_batch)
            found.append(
                Change(
                    f"--micro-batch {batch}",
                    "train",
                    other.total_bytes,
                    needed.total_bytes - other.total_bytes,
                    sample_ms(batch) / now_ms if now_ms else None,
                    other.verdict(budget_bytes).fits,
                    "measured at pack time",
                )
            )
    return cheapest(found)


def cheapest(changes: Sequence[Change]) -> tuple[Change, ...]:
    """At most three: those that fit, by time and then by memory; else what comes closest."""
    fitting = [change for change in changes if change.fits]
    if not fitting:
        helping = [change for change in changes if change.saves_bytes > 0]
        return tuple(sorted(helping, key=lambda change: change.total_bytes)[:MOST_CHANGES])

    def cost(change: Change) -> tuple[float, int]:
        return (change.slower if change.slower is not None else float("inf"), change.total_bytes)

    return tuple(sorted(fitting, key=cost)[:MOST_CHANGES])
