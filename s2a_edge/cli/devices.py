"""``s2a-edge devices``: the boards that profiles exist for, and the one this runs on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.cli.output import Json, Output, Quiet, table
from s2a_edge.spec.strict_json import plain

if TYPE_CHECKING:
    from s2a_edge.spec.profile_facts import DeviceProfile

devices = typer.Typer(
    help="List the device profiles, show one, or detect this board.", rich_markup_mode=None
)


@devices.command("list")
def list_(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the device profiles."""
    from s2a_edge.spec.device_profile import list_profiles
    from s2a_edge.spec.units import format_bytes

    output = Output(as_json=as_json, quiet=quiet)
    profiles = list_profiles()
    rows = table("", ("name", "device", "memory, typical", "trains"), right=("memory, typical",))
    for profile in profiles:
        total = profile.memory.mem_total_bytes
        size = format_bytes(total.value) if total else "?"
        rows.add_row(profile.name, profile.title, size, "yes" if profile.can_train else "plan only")
    output.show(rows)
    output.result([_summary(profile) for profile in profiles])


@devices.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a profile, or a .toml file.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show one profile: every figure with its source."""
    from s2a_edge.spec.device_profile import load_profile

    output = Output(as_json=as_json, quiet=quiet)
    profile = load_profile(name)
    trains = "trains" if profile.can_train else "plan only"
    output.show(f"{profile.name}: {profile.title} ({trains}: {profile.can_train_reason})")
    rows = table("", ("fact", "value", "source", "date"), right=("value",))
    for path, fact in profile.facts():
        source = fact.source if fact.note is None else f"{fact.source} ({fact.note})"
        rows.add_row(path, _value(path, fact.value), source, fact.date)
    output.show(rows)
    output.result(profile)


@devices.command()
def detect(
    root: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Read /proc, /sys and /etc below this folder instead of /.",
        ),
    ] = Path("/"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say which board this is and what memory it has: exit code 1 if no profile matches."""
    from s2a_edge.run import probe

    output = Output(as_json=as_json, quiet=quiet)
    facts = probe.detect(root)
    rows = table("", ("fact", "value"))
    found = plain(facts)
    for name, value in found.items() if isinstance(found, dict) else ():
        rows.add_row(name, _value(name, value))
    output.show(rows)
    output.result(facts)
    if facts.profile is None:
        raise typer.Exit(1)


def _summary(profile: DeviceProfile) -> dict[str, object]:
    total = profile.memory.mem_total_bytes
    return {
        "name": profile.name,
        "title": profile.title,
        "kind": profile.kind,
        "mem_total_bytes": total.value if total else None,
        "can_train": profile.can_train,
        "can_train_reason": profile.can_train_reason,
    }


def _value(path: str, value: object) -> str:
    """A fact for a person: sizes in binary units, what is not known as ``?``."""
    from s2a_edge.spec.units import format_bytes

    if value is None:
        return "?"
    if isinstance(value, (list, tuple)):
        return (
            " .. ".join(_value(path, part) for part in value)
            if _is_size(path)
            else ", ".join(str(part) for part in value)
        )
    if _is_size(path) and isinstance(value, int):
        return format_bytes(value)
    return str(value)


def _is_size(path: str) -> bool:
    return path.endswith("_bytes")
