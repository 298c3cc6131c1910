"""``s2a-edge releases``, ``rollback``, ``start`` and the hidden ``agent``: what is on a board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2a_edge.cli.flash import BoardTarget
from s2a_edge.cli.output import Json, Output, Quiet, table

if TYPE_CHECKING:
    from rich.table import Table


def releases(target: BoardTarget, as_json: Json = False, quiet: Quiet = False) -> None:
    """List the releases and runs on a board."""
    from s2a_edge.link.open_transport import open_transport

    output = Output(as_json=as_json, quiet=quiet)
    with open_transport(target) as transport:
        found = transport.call({"op": "status"}, output.note)
    output.show(*_tables(found))
    output.result(found)


def rollback(target: BoardTarget, as_json: Json = False, quiet: Quiet = False) -> None:
    """Use the release again that was in use before."""
    from s2a_edge.link.open_transport import open_transport

    output = Output(as_json=as_json, quiet=quiet)
    with open_transport(target) as transport:
        done = transport.call({"op": "rollback"}, output.note)
    output.show(f"{target}: release {done['current'][:12]} is in use, not {done['previous'][:12]}")
    output.result(done)


def start(
    root: Annotated[Path, typer.Argument(help="The board's folder; run this on the board.")],
    command: Annotated[
        list[str],
        typer.Argument(help="Program and arguments after --; {bundle} and {runs} are filled in."),
    ],
    attempts: Annotated[
        int, typer.Option(min=1, help="Failed starts in a row, then the previous release.")
    ] = 3,
    good_after: Annotated[
        float, typer.Option(min=0, help="Seconds after which a start has succeeded.")
    ] = 120.0,
    quiet: Quiet = False,
) -> None:
    """Start a program with the current release; go back to the previous one if it keeps failing."""
    from s2a_edge.link.start import start as start_program
    from s2a_edge.link.target import local_folder

    output = Output(as_json=False, quiet=quiet)
    code = start_program(
        local_folder(str(root)),
        command,
        attempts=attempts,
        good_after_s=good_after,
        on_note=output.note,
    )
    raise typer.Exit(code)


def agent(root: Annotated[str, typer.Argument(help="The board's folder.")]) -> None:
    """Carry out one request of a host; one JSON object on stdin, answers on stdout."""
    from s2a_edge.link.agent import main

    raise typer.Exit(main([root]))


def _tables(found: dict[str, Any]) -> list[Table | str]:
    from s2a_edge.spec.units import format_bytes

    if not found["releases"] and not found["runs"]:
        return ["nothing has been flashed there", f"{format_bytes(found['free_bytes'])} free"]
    made = table("Releases", ("hash", "in use", "installed", "state"))
    for release in found["releases"]:
        name = release["hash"]
        use = {found["current"]: "current", found["previous"]: "previous"}.get(name, "")
        state = "good" if release["good"] else "not checked yet"
        if release["bad"]:
            state = f"bad: {release['bad']}"
        elif release["failed_starts"]:
            state += f", {release['failed_starts']} failed starts"
        made.add_row(name[:12], use, release["installed"], state)
    runs = table("Runs", ("name", "of release", "checkpoint"))
    for run in found["runs"]:
        runs.add_row(run["name"], run["bundle"][:12], "yes" if run["checkpoint"] else "no")
    free = f"{format_bytes(found['free_bytes'])} free"
    return [made, *([runs] if found["runs"] else []), free]
