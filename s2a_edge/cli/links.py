"""``s2a-edge links`` and ``pull``: what is reachable, and a run from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from s2a_edge.cli.flash import BoardTarget
from s2a_edge.cli.flash_progress import FlashView
from s2a_edge.cli.output import Json, Output, Quiet, table


@dataclass(frozen=True)
class Link:
    """A way, and what the board behind it says; None where nobody was asked or answered.

    Attributes:
        target: what to give to ``flash``.
        what: in words: which port, or why nobody answers.
        board: model or machine.
        free_bytes: of its file system.
        mem_available_bytes: memory that is free there now.
        mem_total_bytes: all of it.
    """

    target: str
    what: str
    board: str | None = None
    free_bytes: int | None = None
    mem_available_bytes: int | None = None
    mem_total_bytes: int | None = None


def links(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Ask these; default: what is plugged in.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List boards that can be reached, with free space and memory."""
    from s2a_edge.link.usb import find_links
    from s2a_edge.spec.units import format_bytes

    output = Output(as_json=as_json, quiet=quiet)
    if targets:
        rows = [_ask(target, "") for target in targets]
    else:
        # Only a board's own port is written to: who knows what is at the others.
        rows = [
            _ask(found.target, found.what)
            if found.is_board
            else Link(found.target, f"{found.what}; not asked: name it to ask")
            for found in find_links()
        ]

    def size(value: int | None) -> str:
        return "" if value is None else format_bytes(value)

    made = table("", ("target", "board", "free", "memory", ""), right=("free", "memory"))
    for row in rows:
        memory = size(row.mem_available_bytes)
        if row.mem_total_bytes is not None:
            memory += f" of {size(row.mem_total_bytes)}"
        made.add_row(row.target, row.board or "", size(row.free_bytes), memory, row.what)
    output.show(made if rows else "nothing found: no board on USB, no serial port")
    output.result(rows)


def pull(
    target: BoardTarget,
    run: Annotated[str, typer.Argument(help="Name of a run on the board; see releases.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; default: the run's name.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The whole run, with the optimizer's state.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch tuned values, metrics and logs of a run from a board."""
    from s2a_edge.link.open_transport import open_transport
    from s2a_edge.link.pull import pull as pull_run
    from s2a_edge.spec.units import format_bytes

    output = Output(as_json=as_json, quiet=quiet)
    with open_transport(target) as transport, FlashView(output) as view:
        done = pull_run(transport, run, out or Path(run), is_full=full, on_progress=view.update)
    output.show(f"{done.out}: {', '.join(done.files)}; {format_bytes(done.size_bytes)}")
    output.result(done)


def _ask(target: str, what: str) -> Link:
    """What the board at ``target`` says."""
    from s2a_edge.link.open_transport import open_transport
    from s2a_edge.spec.errors import S2AError

    try:
        with open_transport(target, may_push=False) as transport:
            found: Any = transport.call({"op": "hello"}, lambda text: None)
    except S2AError as error:
        return Link(target, f"{what}; {error.got}".removeprefix("; "))
    return Link(
        target=target,
        what=what,
        board=found.get("model") or found.get("machine"),
        free_bytes=found.get("free_bytes"),
        mem_available_bytes=found.get("mem_available_bytes"),
        mem_total_bytes=found.get("mem_total_bytes"),
    )
