"""``s2a-edge kernels``: compile the kernels in C for this machine, or say why not."""

from __future__ import annotations

import typer

from s2a_edge.cli.output import Json, Output, Quiet


def kernels(as_json: Json = False, quiet: Quiet = False) -> None:
    """Compile the kernels in C for this machine; exit code 1 where that cannot be done.

    `train` does it by itself when it first needs them. They make a step faster and change nothing
    else; without a compiler the portable form of the step runs.
    """
    from s2a_edge.native import native_status

    output = Output(as_json=as_json, quiet=quiet)
    status = native_status()
    if status.library is None:
        output.show(f"no kernels: {status.reason}")
    else:
        output.show(f"{status.library}: {status.reason}")
    output.result(status)
    if status.library is None:
        raise typer.Exit(1)
