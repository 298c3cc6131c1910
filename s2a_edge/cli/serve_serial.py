"""``s2a-edge serve-serial``: the board's end of a serial line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2a_edge.cli.output import Output, Quiet


def serve_serial(
    device: Annotated[str, typer.Argument(help="Serial device on the board, /dev/ttyGS0.")],
    root: Annotated[Path, typer.Argument(help="The board's folder.")],
    baud: Annotated[
        int, typer.Option(help="Speed to begin with; hosts may ask for more.")
    ] = 115200,
    once: Annotated[bool, typer.Option("--once", help="End after the first host.")] = False,
    quiet: Quiet = False,
) -> None:
    """Take bundles from hosts over a serial line; runs on the board."""
    from s2a_edge.link.serve_serial import serve_serial as serve
    from s2a_edge.link.target import local_folder

    output = Output(as_json=False, quiet=quiet)
    serve(device, local_folder(str(root)), baud, once=once, on_note=output.note)
