"""A memory budget, and the largest micro-batch that fits it.

A **budget** is what the whole training process may hold in resident memory at once, the mapped
frozen weights included: see :mod:`s2a_edge.spec.requirement` for what counts. Devices' budgets are
derived in :mod:`s2a_edge.spec.device_profile`.
"""

from __future__ import annotations

import math

from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import (
    DEFAULT_SETTING,
    LineKind,
    Requirement,
    RequirementLine,
    Setting,
    Verdict,
    micro_batches,
    requirement,
)
from s2a_edge.spec.units import MIB, format_bytes

__all__ = [
    "LineKind",
    "Requirement",
    "RequirementLine",
    "Setting",
    "Verdict",
    "choose_micro_batch",
    "does_not_fit",
    "micro_batches",
    "requirement",
]

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
) -> BudgetError:
    """The error of a requirement above its budget; names the flags that would help."""
    missing_bytes = needed.verdict(budget_bytes).missing_bytes
    got = f"a budget of {format_bytes(budget_bytes)}, {format_bytes(missing_bytes)} too little"
    return BudgetError(
        where=f"training with micro-batch {needed.micro_batch}",
        expected=f"at least {format_bytes(needed.total_bytes)} of memory",
        got=got,
        todo=_advice(manifest, needed, budget_bytes, setting),
        missing_bytes=missing_bytes,
    )


def _advice(manifest: Manifest, needed: Requirement, budget_bytes: int, setting: Setting) -> str:
    """What to do: a packed graph that fits, other pack flags, or only a larger budget."""
    enough = f"give it --budget {math.ceil(needed.total_bytes / MIB)}MiB or more"
    for batch in micro_batches(manifest):
        if batch < needed.micro_batch:
            smaller = requirement(manifest, micro_batch=batch, setting=setting)
            if smaller.verdict(budget_bytes).fits:
                return f"train with --micro-batch {batch}, which fits, or {enough}"
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
