"""``s2a-edge doctor``: what will go wrong on this machine, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2a_edge.cli.output import Json, Output, Quiet, table


def doctor(
    root: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Read /proc, /sys, /etc and /usr below this folder instead of /.",
        ),
    ] = Path("/"),
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for risks too, not only for failures.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what will go wrong here and how to mend it: exit code 1 if training cannot run."""
    from s2a_edge.run import probe
    from s2a_edge.run.doctor import Patient, diagnose
    from s2a_edge.run.health import read_health
    from s2a_edge.spec.device_profile import load_profile

    output = Output(as_json=as_json, quiet=quiet)
    facts = probe.detect(root)
    profile = load_profile(facts.profile) if facts.profile is not None else None
    health = read_health(facts, root)
    findings = diagnose(Patient(facts, health, profile))
    output.show(f"{profile.title if profile else 'unknown board'} ({facts.reason})")
    rows = table("", ("", "about", "found", "so", "mend it"))
    for finding in findings:
        rows.add_row(
            finding.severity, finding.topic, finding.found, finding.consequence, finding.mend
        )
    output.show(*([rows] if findings else ["nothing to mend"]))
    bad = ("fails", "risk") if strict else ("fails",)
    healthy = not any(finding.severity in bad for finding in findings)
    output.result(
        {
            "profile": facts.profile,
            "healthy": healthy,
            "findings": findings,
            "facts": facts,
            "health": health,
        }
    )
    if not healthy:
        raise typer.Exit(1)
