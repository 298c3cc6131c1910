"""The ``s2a-edge`` command: parse, call, print, exit code; no logic.

One module per group of commands; what a command needs is imported inside it, so that ``--help``
answers at once and a board never loads what only the host has.

Exit codes: 0 done; 1 an error; 2 wrong usage; 3 it does not fit the memory budget; 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from s2a_edge import __version__
from s2a_edge.cli.check import check
from s2a_edge.cli.devices import devices
from s2a_edge.cli.doctor import doctor
from s2a_edge.cli.evaluate import evaluate
from s2a_edge.cli.export import export
from s2a_edge.cli.failures import FailureGroup
from s2a_edge.cli.flash import flash
from s2a_edge.cli.inspect import inspect
from s2a_edge.cli.kernels import kernels
from s2a_edge.cli.keys import keygen, sign
from s2a_edge.cli.links import links, pull
from s2a_edge.cli.pack import pack
from s2a_edge.cli.rehearse import rehearse
from s2a_edge.cli.releases import agent, releases, rollback, start
from s2a_edge.cli.serve_serial import serve_serial
from s2a_edge.cli.train import train

app = typer.Typer(
    name="s2a-edge",
    cls=FailureGroup,
    help="Fine-tune pretrained backbones on small boards, inside a memory budget.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help and usage errors: they are read in logs and serial consoles
    pretty_exceptions_enable=False,  # what is not an S2AError is our bug: a plain traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Fine-tune pretrained backbones on small boards, inside a memory budget."""


app.command("pack")(pack)
app.command("keygen")(keygen)
app.command("sign")(sign)
app.command("check")(check)
app.command("doctor")(doctor)
app.command("inspect")(inspect)
app.command("train")(train)
app.command("kernels")(kernels)
app.command("eval")(evaluate)
app.command("export")(export)
app.command("flash")(flash)
app.command("pull")(pull)
app.command("links")(links)
app.command("releases")(releases)
app.command("rollback")(rollback)
app.command("start", context_settings={"ignore_unknown_options": True})(start)
app.command("serve-serial")(serve_serial)
app.command("agent", hidden=True)(agent)
app.command("rehearse", hidden=True)(rehearse)
app.add_typer(devices, name="devices")


def main() -> None:
    """Run the command line of this process; exits with the codes above."""
    app(prog_name="s2a-edge")
