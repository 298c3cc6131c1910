"""The memory budget, however it is given: ``--budget``, ``--device`` or ``--this-device``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.spec.errors import UsageError

if TYPE_CHECKING:
    from s2a_edge.spec.device_profile import BudgetLine, Provider, TrainingBudget

Budget = Annotated[
    str | None, typer.Option("--budget", metavar="SIZE", help="Memory budget, such as 600MiB.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="PROFILE", help="Budget of a device profile, by name or file."
    ),
]
ThisDevice = Annotated[
    bool, typer.Option("--this-device", help="Budget of the machine this runs on, right now.")
]
Desktop = Annotated[
    bool, typer.Option("--desktop", help="A desktop session runs on the device beside training.")
]


@dataclass(frozen=True)
class GivenBudget:
    """A budget and how it comes about.

    Attributes:
        budget_bytes: what a process that trains may hold.
        origin: the option it was given with, or the device it is of.
        lines: its terms; empty where it was given as a size.
    """

    budget_bytes: int
    origin: str
    lines: tuple[BudgetLine, ...] = ()


def resolve_budget(
    *,
    budget: str | None,
    device: str | None,
    this_device: bool = False,
    desktop: bool = False,
    provider: Provider | None = None,
) -> GivenBudget | None:
    """The budget that the options ask for; None if none was given.

    Raises:
        UsageError: more than one was given, or a size is none.
        DeviceError: the device is unknown, or too little is known of it.
    """
    given = [
        flag
        for flag, is_given in (
            ("--budget", budget is not None),
            ("--device", device is not None),
            ("--this-device", this_device),
        )
        if is_given
    ]
    if len(given) > 1:
        raise UsageError(
            where=given[0],
            expected="one way to say the budget",
            got=" and ".join(given),
            todo="give only one of them",
        )
    if budget is not None:
        from s2a_edge.spec.units import parse_bytes

        return GivenBudget(parse_bytes(budget, where="--budget"), "--budget")
    if device is not None:
        from s2a_edge.spec.device_profile import load_profile, training_budget

        profile = load_profile(device)
        return _of_device(
            profile.title, training_budget(profile, desktop=desktop, provider=provider)
        )
    return _of_this_device(provider) if this_device else None


def _of_this_device(provider: Provider | None) -> GivenBudget:
    from s2a_edge.run import probe
    from s2a_edge.run.headroom import default_headroom_bytes
    from s2a_edge.run.process_memory import available_bytes
    from s2a_edge.spec.device_profile import BudgetLine, load_profile, training_budget

    facts = probe.detect()
    profile = load_profile(facts.profile or "cpu-reference")
    made = training_budget(
        profile,
        mem_total_bytes=facts.mem_total_bytes,
        available_bytes=available_bytes(),
        provider=provider,
    )
    totals = [facts.mem_total_bytes, facts.cgroup.limit_bytes if facts.cgroup else None]
    headroom_bytes = default_headroom_bytes(min(x for x in (*totals, 2**63) if x is not None))
    kept = BudgetLine("headroom that training keeps free", -headroom_bytes, "s2a-edge")
    title = f"this device, {profile.title}"
    return GivenBudget(made.budget_bytes - headroom_bytes, title, (*made.lines, kept))


def _of_device(title: str, made: TrainingBudget) -> GivenBudget:
    return GivenBudget(made.budget_bytes, title, made.lines)
