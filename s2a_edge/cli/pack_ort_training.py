"""``s2a-edge pack --format ort-training``: artifacts instead of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2a_edge.cli.output import Output, stage_notes, table
from s2a_edge.spec.errors import UsageError

FORMATS = ("s2a", "ort-training")


def write_artifacts(output: Output, wanted: str, source: str, out: Path,
                    recipe: Mapping[str, Any], sign: Path | None) -> None:
    """Writes the artifacts and shows what they are.

    Args:
        output: the command's printer.
        wanted: the value of ``--format``, which is not ``s2a``.
        source: what to pack.
        out: the folder to write.
        recipe: fields of ``PackOptions``.
        sign: the value of ``--sign``.

    Raises:
        UsageError: for an unknown format, or a signature, which only bundles have.
    """
    if wanted not in FORMATS:
        raise UsageError(where="--format", expected=" or ".join(FORMATS), got=repr(wanted),
                         todo="choose one of them")
    if sign is not None:
        raise UsageError(where="--sign", expected="a bundle", got=f"--format {wanted}",
                         todo="leave --sign out; the folder has a SHA256SUMS")
    from s2a_edge.pack.options import PackOptions
    from s2a_edge.pack.ort_training.artifacts import pack_ort_training
    from s2a_edge.spec.units import format_bytes

    report = pack_ort_training(source, out, PackOptions(**recipe), stage_notes(output))
    about = report.description
    rows = table(f"{report.path} ({format_bytes(report.size_bytes)})", ("", "value"))
    rows.add_row("training inputs", ", ".join(
        f"{name} {'x'.join(map(str, shape))}" for name, shape in about["training_inputs"].items()))
    rows.add_row("parameters", f"{len(about['parameters'])} tensors")
    rows.add_row("saved for the backward", format_bytes(about["saved_bytes"]))
    rows.add_row("planned peak of the step, in file order",
                 format_bytes(about["planned_liveness_peak_bytes"]))
    output.show(rows)
    output.result(report)
