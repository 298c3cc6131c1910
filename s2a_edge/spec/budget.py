"""A memory budget, and the largest micro-batch that fits it.

A **budget** is what the whole training process may hold in resident memory at once, the mapped
frozen weights included: see :mod:`s2a_edge.spec.requirement` for what counts. Devices' budgets are
derived in :mod:`s2a_edge.spec.device_profile`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from s2a_edge.spec.changes import Change, smaller_micro_batches
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import (
    DEFAULT_SETTING,
    LineKind,
    Requirement,
    Setting,
    micro_batches,
    requirement,
)
from s2a_edge.spec.units import MIB, format_bytes

__all__ = ["choose_micro_batch", "does_not_fit"]

# Lines that a smaller micro-batch or fewer bits cannot shrink.
_FIXED = frozenset(LineKind) - {LineKind.ARENA, LineKind.INPUTS}


def choose_micro_batch(
    manifest: Manifest, budget_bytes: int, *, setting: Setting = DEFAULT_SETTING
) -> int:
    """The largest packed micro-batch with which training fits the budget.

    Raises:
        BudgetError: none does; says what is missing for the smallest and what would help.
    """
    for batch in micro_batches(manifest):
        needed = requirement(manifest, micro_batch=batch, setting=setting)
        if needed.verdict(budget_bytes).fits:
            return batch
    raise does_not_fit(manifest, needed, budget_bytes, setting=setting)


def does_not_fit(
    manifest: Manifest,
    needed: Requirement,
    budget_bytes: int,
    *,
    setting: Setting = DEFAULT_SETTING,
    changes: Sequence[Change] | None = None,
) -> BudgetError:
    """The error of a requirement above its budget; names the flags that would help.

    Args:
        manifest: of the bundle.
        needed: what does not fit.
        budget_bytes: into which.
        setting: of ``needed``.
        changes: the cheapest of what would help, measured; None: those that the bundle knows.
    """
    missing_bytes = needed.verdict(budget_bytes).missing_bytes
    got = f"a budget of {format_bytes(budget_bytes)}, {format_bytes(missing_bytes)} too little"
    if changes is None:
        changes = smaller_micro_batches(manifest, needed, budget_bytes, setting=setting)
    return BudgetError(
        where=f"training with micro-batch {needed.micro_batch}",
        expected=f"at least {format_bytes(needed.total_bytes)} of memory",
        got=got,
        todo=_advice(manifest, needed, budget_bytes, changes),
        missing_bytes=missing_bytes,
        changes=[change.as_dict() for change in changes],
    )


def _advice(
    manifest: Manifest, needed: Requirement, budget_bytes: int, changes: Sequence[Change]
) -> str:
    """What to do: measured changes that fit, other pack flags, or only a larger budget."""
    enough = f"give it --budget {math.ceil(needed.total_bytes / MIB)}MiB or more"
    fitting = [change for change in changes if change.fits]
    if fitting:
        verb = {"train": "train", "pack": "pack again"}[fitting[0].command]
        named = ", or ".join(f"with {change}" for change in fitting)
        return f"{verb} {named}; or {enough}"
    if changes and changes[0].command == "pack":
        short = min(change.total_bytes for change in changes) - budget_bytes
        named = ", ".join(map(str, changes))
        return (
            f"no single change is enough; what helps most: {named}, and {format_bytes(short)} are "
            f"still missing: combine them, or {enough}"
        )
    fixed_bytes = needed.of_kind(*_FIXED)
    if fixed_bytes >= budget_bytes:
        return (
            f"{enough}, or pack a smaller backbone: {format_bytes(fixed_bytes)} of it depend "
            "neither on the micro-batch nor on --bits"
        )
    flags = []
    smallest, bits = min(micro_batches(manifest)), manifest.recipe.bits
    if bits == "auto":
        return f"pack again with --bits auto --budget {budget_bytes}, or {enough}"
    if smallest > 1:
        flags.append(f"--micro-batch {smallest // 2}")
    if bits > 2:
        flags.append(f"--bits {4 if bits > 4 else 2}")
    if not flags:
        return f"{enough}, or pack a smaller backbone or input"
    return f"pack again with {' and '.join(flags)}, or {enough}"
