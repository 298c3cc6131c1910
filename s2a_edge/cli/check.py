"""``s2a-edge check``: does a bundle fit, and by how much."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
from s2a_edge.cli.run_options import Engine, EngineName
from s2a_edge.cli.trust_option import Trust, load_trust
from s2a_edge.cli.waterfall import phases_table, waterfall_table
from s2a_edge.spec.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.spec.changes import Change
    from s2a_edge.spec.manifest import Manifest
    from s2a_edge.spec.requirement import Requirement, Setting, Verdict


def check(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder or a .s2a file.")],
    budget: Budget = None,
    device: Device = None,
    this_device: ThisDevice = False,
    desktop: Desktop = False,
    engine: Engine = "cpu",
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Samples a step takes at once; default: the most that fit.", min=1),
    ] = None,
    val: Annotated[
        bool,
        typer.Option(
            "--val/--no-val", help="Count validation; training without --val does not load it."
        ),
    ] = True,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png|FILE.html", help="Draw memory over the training step."),
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what training needs, and whether it fits: exit code 0, or 3 if it does not."""
    from s2a_edge.cli.memory_plot import draw_memory, require_plot_name
    from s2a_edge.spec.budget import does_not_fit
    from s2a_edge.spec.bundle import Bundle
    from s2a_edge.spec.changes import smaller_micro_batches
    from s2a_edge.spec.requirement import micro_batches, requirement

    if plot is not None:
        require_plot_name(plot)

    output = Output(as_json=as_json, quiet=quiet)
    if engine == "auto" and not this_device:
        raise UsageError(
            where="--engine auto",
            expected="--this-device, whose CUDA is then looked at",
            got="a budget or a profile",
            todo="say --engine cuda or --engine cpu",
        )
    given = resolve_budget(
        budget=budget,
        device=device,
        this_device=this_device,
        desktop=desktop,
        # What CUDA takes is measured below where it is this device's.
        provider="cuda" if engine == "cuda" and not this_device else "cpu",
    )
    with Bundle.open(bundle, trust=load_trust(trust)) as opened:
        manifest = opened.manifest
        budget_bytes = None if given is None else given.budget_bytes
        setting = _setting(engine, manifest, budget_bytes, val, output if this_device else None)
        sizes = (micro_batch,) if micro_batch is not None else micro_batches(manifest)
        needs = [requirement(manifest, micro_batch=size, setting=setting) for size in sizes]
        # The largest that fits; if none does, the smallest, which misses least.
        fitting = (n for n in needs if budget_bytes is None or n.verdict(budget_bytes).fits)
        needed = next(fitting, needs[-1])
        if plot is not None:
            draw_memory(opened, needed, plot, budget_bytes)
            output.note(f"{plot}: memory over the training step")
    if given is None:
        for one in needs:
            output.show(*_requirement_tables(manifest, one, output, None))
        shown = [_as_dict(manifest, one) for one in needs]
        output.result({"requirements": shown})
        return
    verdict = needed.verdict(given.budget_bytes)
    output.show(
        *_requirement_tables(manifest, needed, output, given.budget_bytes),
        *_budget_parts(given),
        _verdict_line(verdict),
    )
    error = None
    if not verdict.fits:
        largest = needs[0] if micro_batch is None else needed
        changes = smaller_micro_batches(manifest, largest, given.budget_bytes, setting=setting)
        output.show(*_change_lines(changes))
        error = does_not_fit(
            manifest, needed, given.budget_bytes, setting=setting, changes=changes
        )
    output.result(
        {
            "requirement": _as_dict(manifest, needed),
            "budget": given,
            "verdict": verdict,
            "changes": [] if error is None else list(error.changes),
        }
    )
    if error is not None:
        print(one_line(error), file=sys.stderr)
        raise typer.Exit(error.exit_code)


def _as_dict(manifest: Manifest, needed: Requirement) -> dict[str, object]:
    from s2a_edge.spec.waterfall import phase_needs, waterfall

    return {
        **needed.as_dict(),
        "waterfall": waterfall(manifest, needed),
        "phases": phase_needs(manifest, needed),
    }


def _change_lines(changes: Sequence[Change]) -> list[str]:
    if not changes:
        return []
    fits = changes[0].fits
    head = "What makes it fit, cheapest first:" if fits else "What would help, and not be enough:"
    return [head, *(f"  {change.command} {change}" for change in changes)]


def _setting(
    engine: EngineName,
    manifest: Manifest,
    budget_bytes: int | None,
    evaluation: bool,
    output: Output | None,
) -> Setting:
    """What the requirement depends on; with an ``output``, for the machine this runs on."""
    from s2a_edge.spec.requirement import Setting

    if output is None:
        return Setting(provider="cuda" if engine == "cuda" else "cpu", evaluation=evaluation)
    # With everything loaded that training loads: what this process holds now counts.
    import s2a_edge.run.trainer  # noqa: F401
    from s2a_edge.run.engine_choice import choose_engine
    from s2a_edge.run.memory_check import measure_setting

    chosen = choose_engine(engine, manifest, budget_bytes, evaluation=evaluation)
    if chosen.reason:
        output.note(f"engine {chosen.provider}: {chosen.reason}")
    return measure_setting(
        chosen.provider, evaluation=evaluation, cuda_context_bytes=chosen.cuda_context_bytes
    )


def _requirement_tables(
    manifest: Manifest, needed: Requirement, output: Output, budget_bytes: int | None
) -> list[Table]:
    from s2a_edge.spec.waterfall import phase_needs, waterfall

    title = f"Training with micro-batch {needed.micro_batch}"
    bars = waterfall(manifest, needed)
    return [
        waterfall_table(title, bars, budget_bytes=budget_bytes, drawn=output.draws),
        phases_table(phase_needs(manifest, needed)),
    ]


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
