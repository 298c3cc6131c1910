"""``s2a-edge check``: does a bundle fit, and by how much."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.cli.budget_option import (
    Budget,
    Desktop,
    Device,
    GivenBudget,
    ThisDevice,
    resolve_budget,
)
from s2a_edge.cli.failures import one_line
from s2a_edge.cli.output import Json, Output, Quiet, table
from s2a_edge.cli.run_options import ProviderName
from s2a_edge.cli.trust_option import Trust, load_trust

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.spec.requirement import Requirement, Setting, Verdict


def check(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder or a .s2a file.")],
    budget: Budget = None,
    device: Device = None,
    this_device: ThisDevice = False,
    desktop: Desktop = False,
    provider: Annotated[
        ProviderName,
        typer.Option(help="What will execute the step; cuda adds its context and weight copies."),
    ] = "cpu",
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Samples a step takes at once; default: the most that fit.", min=1),
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what training needs, and whether it fits: exit code 0, or 3 if it does not."""
    from s2a_edge.spec.budget import does_not_fit, micro_batches, requirement
    from s2a_edge.spec.bundle import Bundle

    output = Output(as_json=as_json, quiet=quiet)
    given = resolve_budget(
        budget=budget,
        device=device,
        this_device=this_device,
        desktop=desktop,
        provider=provider,
    )
    with Bundle.open(bundle, trust=load_trust(trust)) as opened:
        manifest = opened.manifest
    setting = _setting(provider, measured=this_device)
    sizes = (micro_batch,) if micro_batch is not None else micro_batches(manifest)
    needs = [requirement(manifest, micro_batch=size, setting=setting) for size in sizes]
    if given is None:
        output.show(*(_requirement_table(needed) for needed in needs))
        output.result({"requirements": [needed.as_dict() for needed in needs]})
        return
    # The largest that fits; if none does, the smallest, which misses least.
    needed = next((one for one in needs if one.verdict(given.budget_bytes).fits), needs[-1])
    verdict = needed.verdict(given.budget_bytes)
    output.show(_requirement_table(needed), *_budget_parts(given), _verdict_line(verdict))
    output.result({"requirement": needed.as_dict(), "budget": given, "verdict": verdict})
    if not verdict.fits:
        error = does_not_fit(manifest, needed, given.budget_bytes, setting=setting)
        print(one_line(error), file=sys.stderr)
        raise typer.Exit(error.exit_code)


def _setting(provider: ProviderName, *, measured: bool) -> Setting:
    """What the requirement depends on; ``measured`` for the machine this runs on."""
    from s2a_edge.spec.requirement import Setting

    if not measured:
        return Setting(provider=provider)
    # With everything loaded that training loads: what this process holds now counts.
    import s2a_edge.run.trainer  # noqa: F401
    from s2a_edge.run.memory_check import measure_setting

    return measure_setting(provider)


def _requirement_table(needed: Requirement) -> Table:
    from s2a_edge.spec.units import format_bytes

    made = table(
        f"Training with micro-batch {needed.micro_batch}", ("part", "needs", ""), right=("needs",)
    )
    for line in needed.lines:
        made.add_row(line.label, format_bytes(line.size_bytes), line.how)
    made.add_section()
    made.add_row("all together", format_bytes(needed.total_bytes), "")
    return made


def _budget_parts(given: GivenBudget) -> list[str | Table]:
    """How the budget comes about, where it was derived."""
    from s2a_edge.spec.units import format_bytes

    if not given.lines:
        return []
    made = table(f"Budget of {given.origin}", ("part", "bytes", "source"), right=("bytes",))
    for line in given.lines:
        made.add_row(line.label, format_bytes(line.size_bytes), line.source)
    made.add_section()
    made.add_row("budget", format_bytes(given.budget_bytes), "")
    return [made]


def _verdict_line(verdict: Verdict) -> str:
    from s2a_edge.spec.units import format_bytes

    budget = format_bytes(verdict.budget_bytes)
    if verdict.fits:
        return f"fits {budget} with {format_bytes(verdict.headroom_bytes)} to spare"
    return f"does not fit {budget}: {format_bytes(verdict.missing_bytes)} are missing"
