"""``s2a-edge export``: a plain inference ONNX model with the tuned values merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2a_edge.cli.output import Json, Output, Quiet
from s2a_edge.cli.run_options import Checkpoint, MovedBundle


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write.")],
    checkpoint: Checkpoint = None,
    bundle: MovedBundle = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a plain inference ONNX model of the tuned backbone.

    Its output is logits: scores before softmax or sigmoid, or numbers in the targets' own units.
    """
    from s2a_edge.run.finished_run import export_run
    from s2a_edge.spec.units import format_bytes

    output = Output(as_json=as_json, quiet=quiet)
    exported = export_run(run, out, checkpoint=checkpoint, bundle=bundle)
    path, size_bytes = exported.path, exported.path.stat().st_size
    output.show(f"{path}: {format_bytes(size_bytes)}; {exported.output}")
    output.result({"path": path, "size_bytes": size_bytes, "output": exported.output})
