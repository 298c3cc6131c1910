"""``s2a-edge flash``: put a bundle on a board, whole and verified, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.cli.flash_progress import FlashView
from s2a_edge.cli.output import Json, Output, Quiet
from s2a_edge.cli.trust_option import Trust, load_trust

if TYPE_CHECKING:
    from s2a_edge.link.flash import Flashed

BoardTarget = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="dir:/path, ssh://user@host/path, serial:/dev/ttyACM0 or usb: (the board on USB).",
    ),
]


def flash(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder or a .s2a file.")],
    target: BoardTarget,
    trust: Trust = None,
    any_board: Annotated[
        bool, typer.Option("--any-board", help="Take a bundle packed for another device.")
    ] = False,
    new_trainables: Annotated[
        bool, typer.Option("--new-trainables", help="Take one that the board's runs do not fit.")
    ] = False,
    mounted: Annotated[
        bool,
        typer.Option(
            "--mounted", help="The folder is another machine's card: checked at the first start."
        ),
    ] = False,
    with_runtime: Annotated[
        bool,
        typer.Option("--with-runtime", help="Put this s2a-edge, without the packer, there first."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a bundle on a board, check it there, and use it."""
    from s2a_edge.link.bare_package import build_runtime
    from s2a_edge.link.flash import flash as flash_bundle
    from s2a_edge.link.install import Options
    from s2a_edge.link.open_transport import open_transport
    from s2a_edge.spec.bundle import Bundle

    output = Output(as_json=as_json, quiet=quiet)
    options = Options(any_board=any_board, new_trainables=new_trainables, elsewhere=mounted)
    with (
        Bundle.open(bundle, trust=load_trust(trust)) as opened,
        open_transport(target) as transport,
        FlashView(output) as view,
    ):
        done = flash_bundle(
            opened,
            transport,
            options=options,
            runtime=build_runtime() if with_runtime else None,
            on_progress=view.update,
        )
    output.show(_line(target, done))
    output.result(done)


def _line(target: str, done: Flashed) -> str:
    from s2a_edge.spec.units import format_bytes

    text = f"{target}: release {done.release[:12]}"
    text += " is in use" if done.switched else " was and is in use"
    text += f"; sent {format_bytes(done.sent_bytes)}"
    if done.there_bytes:
        text += f", {format_bytes(done.there_bytes)} were there"
    if done.step_ms is not None:
        text += f"; a step took {done.step_ms:.0f} ms"
    if done.signed_by is not None:
        text += f"; signed by {done.signed_by}"
    return text
