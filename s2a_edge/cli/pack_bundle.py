"""``s2a-edge pack --format s2a``: a bundle, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.cli.frontier import draw_frontier, search_parts
from s2a_edge.cli.output import Output, stage_notes, table

if TYPE_CHECKING:
    from rich.table import Table

    from s2a_edge.pack.build import PackReport


def write_bundle(
    output: Output,
    source: str,
    out: Path,
    recipe: Mapping[str, Any],
    *,
    sign: Path | None,
    plot: Path | None,
) -> None:
    """Writes the bundle and shows what it needs.

    Args:
        output: the command's printer.
        source: what to pack.
        out: the bundle to write.
        recipe: fields of ``PackOptions``.
        sign: the secret key to sign with.
        plot: where to draw what a search weighed.
    """
    from s2a_edge.pack.build import pack as build_bundle
    from s2a_edge.pack.options import PackOptions
    from s2a_edge.spec.signing_key import load_key, sign_bundle

    key = load_key(sign) if sign else None  # before the work, which takes minutes
    report = build_bundle(source, out, PackOptions(**recipe), on_stage=stage_notes(output))
    if key is not None:
        output.note(f"signed by key {sign_bundle(report.path, key).key_id}")
    search = report.manifest.recipe.search
    output.show(_report_table(report), *([] if search is None else search_parts(search)))
    if plot is not None and search is not None:
        draw_frontier(plot, report.manifest)
        output.note(f"{plot}: memory against step time")
    output.result(report)


def _report_table(report: PackReport) -> Table:
    from s2a_edge.spec.units import format_bytes

    made = table(f"{report.path} ({format_bytes(report.size_bytes)})", ("", "value"))
    manifest = report.manifest
    for group in report.tunable:
        made.add_row(
            f"trainables: {group.adapter}",
            f"{group.tensors} tensors, {group.parameters:,} parameters, {group.share:.3%}",
        )
    if manifest.frozen.logits_error is not None:
        made.add_row(
            f"{manifest.frozen.storage} weights",
            f"{manifest.frozen.logits_error:.2%} error of the output before training",
        )
    for graph in manifest.graphs.train:
        plan, seen = graph.plan, graph.evidence
        planned, measured = plan.liveness_peak_bytes, seen.arena_measured_bytes
        made.add_row(
            graph.file,
            f"planned peak {format_bytes(planned)}, measured {format_bytes(measured)}, "
            f"step {seen.step_ms:.0f} ms (n = {seen.n})",
        )
        if graph.native is not None:
            faster = graph.native.evidence
            measured = faster.arena_measured_bytes
            made.add_row(
                graph.native.file,
                f"with kernels in C: measured {format_bytes(measured)}, "
                f"step {faster.step_ms:.0f} ms (n = {faster.n})",
            )
        if seen.gradient_error is not None:
            error = seen.gradient_error
            made.add_row(
                "gradient error",
                f"{error.total:.2%} of all; by trainable median {error.median:.2%}, "
                f"largest {error.max:.2%} ({error.worst})",
            )
    return made
