"""``s2a-edge inspect``: what a bundle is, trains, saves, plans and was measured to need."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.cli.frontier import search_parts
from s2a_edge.cli.output import Json, Output, Quiet, table
from s2a_edge.spec.strict_json import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from s2a_edge.spec.manifest import Manifest, SavedValue, TunedBlock
    from s2a_edge.spec.memory_plan import Evidence, MemoryPlan
    from s2a_edge.spec.tunable import TrainableGroup

_FLOAT32_BYTES = 4
_COUNTED = {"cross_entropy": "classes", "bce": "labels", "mse": "numbers", "l1": "numbers",
            "output": "classes"}


@dataclass(frozen=True)
class SavedGroup:
    """Saved values of one kind and codec; ``float32_bytes`` is what they would be unpacked."""

    kind: str
    codec: str
    values: int
    bits: float
    stored_bytes: int
    float32_bytes: int


def inspect(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder or a .s2a file.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a bundle's recipe, trainables, blocks, memory plan, saved values and hashes."""
    from s2a_edge.spec.bundle import Bundle
    from s2a_edge.spec.checksums import SUMS_NAME, parse_sums
    from s2a_edge.spec.tunable import tunable_groups

    output = Output(as_json=as_json, quiet=quiet)
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        hashes = parse_sums((opened.path / SUMS_NAME).read_bytes())
        bundle_hash = opened.hash
    trainables, saved = tunable_groups(manifest), saved_groups(manifest.saved)
    output.show(
        _recipe_table(manifest),
        *([] if manifest.recipe.search is None else search_parts(manifest.recipe.search)),
        _trainables_table(trainables),
        _blocks_table(manifest.tuning.found),
        _graphs_table(manifest),
        _peak_table(manifest),
        _saved_table(saved),
        *_allocation_tables(manifest),
        _hashes_table({"the bundle (of SHA256SUMS)": bundle_hash, **hashes}),
    )
    output.result(
        {
            "manifest": manifest,
            "trainable_groups": trainables,
            "saved_groups": saved,
            "bundle_hash": bundle_hash,
            "sha256": hashes,
        }
    )


def saved_groups(saved: Iterable[SavedValue]) -> list[SavedGroup]:
    """Saved values by kind and codec, the largest first."""
    groups: dict[tuple[str, str], list[SavedValue]] = defaultdict(list)
    for value in saved:
        groups[str(value.kind), value.codec].append(value)
    rows = [
        SavedGroup(
            kind,
            codec,
            len(values),
            sum(v.bits * math.prod(v.shape) for v in values)
            / max(1, sum(math.prod(v.shape) for v in values)),
            sum(v.stored_bytes for v in values),
            sum(math.prod(v.shape) for v in values) * _FLOAT32_BYTES,
        )
        for (kind, codec), values in groups.items()
    ]
    return sorted(rows, key=lambda row: row.stored_bytes, reverse=True)


def _recipe_table(manifest: Manifest) -> Table:
    source, recipe, task = manifest.source, manifest.recipe, manifest.task
    inputs = ", ".join(f"{i.name} {i.dtype} {'x'.join(map(str, i.shape))}" for i in manifest.inputs)
    rows = {
        "source": f"{source.kind}:{source.name}",
        "weights": source.weights,
        "features": source.features,
        "pooling": source.pool,
        "inputs": inputs,
        "texts": _texts(manifest),
        "loss": task.loss if task.output is None else f"{task.output}, of the graph itself",
        _COUNTED[task.loss]: _named(task.classes, task.labels),
        "adapters": ", ".join(recipe.adapters),
        "rank": manifest.tuning.rank,
        "channels averaged into one": manifest.tuning.reduce,
        "blocks": manifest.tuning.blocks,
        "target modules": manifest.tuning.target_modules,
        "bits of saved values": recipe.bits,
        "frozen weights": _frozen(manifest),
        "attention": recipe.attention,
        "recompute": recipe.recompute,
        "gradient errors measured on": _calibration(manifest),
        "optimizer": recipe.optimizer,
        "effective batch": recipe.effective_batch,
        "micro-batches": ", ".join(map(str, recipe.micro_batches)),
        "device": recipe.device,
        "seed": recipe.seed,
        "packed": f"{manifest.created} by s2a-edge {manifest.tool_version}",
        "providers": ", ".join(manifest.compat.providers),
    }
    made = table("Recipe", ("", "value"))
    for name, value in rows.items():
        if value is not None:
            made.add_row(name, str(value))
    return made


def _frozen(manifest: Manifest) -> str:
    frozen = manifest.frozen
    error = frozen.logits_error
    return frozen.storage if error is None else (
        f"{frozen.storage}, {error:.2%} error of the output before training"
    )


def _calibration(manifest: Manifest) -> str | None:
    used = manifest.precision.calibration
    return None if used is None else f"{used.samples} samples of {used.source}"


def _texts(manifest: Manifest) -> str | None:
    spec = manifest.preprocessing
    if spec is None or spec.kind != "text":
        return None
    return f"{spec.tokenizer}, up to {spec.max_length} tokens"


def _named(count: int, labels: tuple[str, ...]) -> str | None:
    if not count:
        return None
    return f"{count}: {', '.join(labels)}" if labels else str(count)


def _trainables_table(groups: Iterable[TrainableGroup]) -> Table:
    figures = ("tensors", "parameters", "share")
    made = table("Trainables", ("adapter", *figures), right=figures)
    for group in groups:
        count = f"{group.parameters:,}"
        made.add_row(group.adapter, f"{group.tensors}", count, f"{group.share:.3%}")
    return made


def _blocks_table(blocks: Iterable[TunedBlock]) -> Table:
    made = table("Blocks, from the input to the features", ("block", "output", "adapters"))
    for block in blocks:
        made.add_row(block.name, "x".join(map(str, block.shape)), ", ".join(block.adapters) or "-")
    return made


def _graphs_table(manifest: Manifest) -> Table:
    from s2a_edge.spec.units import format_bytes

    figures = ("batch", "lower bound", "planned peak", "arena limit", "measured", "step ms", "n")
    made = table("Graphs: planned, and measured when packed", ("file", *figures), right=figures)
    graphs = manifest.graphs
    listed: list[tuple[str, str, MemoryPlan, Evidence]] = [
        (g.file, str(g.batch), g.plan, g.evidence) for g in (*graphs.train, graphs.eval)
    ]
    listed += [
        (g.native.file, str(g.batch), g.native.plan, g.native.evidence)
        for g in graphs.train
        if g.native is not None
    ]
    update = graphs.optimizer
    for file, batch, plan, evidence in (*listed, (update.file, "", update.plan, update.evidence)):
        sizes = (plan.lower_bound_bytes, plan.liveness_peak_bytes, plan.arena_bytes)
        measured = evidence.arena_measured_bytes
        shown = [format_bytes(size) for size in (*sizes, measured)]
        made.add_row(file, batch, *shown, f"{evidence.step_ms:.1f}", str(evidence.n))
    return made


def _peak_table(manifest: Manifest) -> Table:
    from s2a_edge.spec.units import format_bytes

    largest = max(manifest.graphs.train, key=lambda graph: graph.batch)
    made = table(
        f"Alive at the planned peak of {largest.file} ({largest.plan.peak_node})",
        ("kind", "bytes"),
        right=("bytes",),
    )
    for kind, size in sorted(largest.plan.at_peak.items(), key=lambda item: -item[1]):
        made.add_row(str(plain(kind)), format_bytes(size))
    return made


def _saved_table(groups: list[SavedGroup]) -> Table:
    from s2a_edge.spec.units import format_bytes

    figures = ("values", "bits", "stored", "as float32")
    made = table("Saved for the backward", ("kind", "codec", *figures), right=figures)
    for group in groups:
        sizes = (format_bytes(group.stored_bytes), format_bytes(group.float32_bytes))
        made.add_row(group.kind, group.codec, str(group.values), f"{group.bits:.2f}", *sizes)
    return made


def _allocation_tables(manifest: Manifest) -> list[Table]:
    """With ``--bits auto``: how bits were chosen, and what each value got and why."""
    from s2a_edge.spec.units import format_bytes

    record = manifest.precision.allocated
    if record is None:
        return []
    largest = max(manifest.graphs.train, key=lambda graph: graph.batch)
    seen = largest.evidence.gradient_error
    title = f"Bits chosen for each saved value (micro-batch {largest.batch})"
    summary = table(title, ("", "value"))
    rows = {
        "stored / allowed": f"{format_bytes(record.stored_bytes)} / "
        f"{format_bytes(record.capacity_bytes)}",
        "gradient error, predicted": f"{record.predicted_error:.2%} (no choice within the bytes "
        f"below {record.least_error:.2%})",
        "gradient error, measured": "-" if seen is None else f"{seen.total:.2%}",
        "measured on": f"{record.samples} samples, seed {record.seed}, {record.seconds:.0f} s",
    }
    for name, value in rows.items():
        summary.add_row(name, value)
    figures = ("bits", "stored", "error alone")
    values = table("What each got, and why", ("module", "kind", *figures, "why"), right=figures)
    for saved in manifest.saved:
        if saved.reason:
            bits = f"{saved.bits:g}"
            alone = saved.sensitivity.get(bits)
            values.add_row(
                saved.module,
                str(saved.kind),
                bits if saved.bits else "recompute",
                format_bytes(saved.stored_bytes),
                "-" if alone is None else f"{alone:.3%}",
                saved.reason,
            )
    return [summary, values]


def _hashes_table(hashes: dict[str, str]) -> Table:
    made = table("SHA-256", ("file", "hash"))
    for file, digest in hashes.items():
        made.add_row(file, digest)
    return made
