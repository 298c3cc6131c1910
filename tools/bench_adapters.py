#!/usr/bin/env python3
"""Adapters: what each keeps for the backward, what it costs in time, and how much trains.

    python tools/bench_adapters.py --batch 4 --json out.json

Each model is captured once; each choice of adapters and bits is compiled into a training step,
which runs inside its planned arena in processes of its own, in turn (A B C A B C ...), so that a
machine whose speed drifts treats all alike. The cost of a step is processor time: with one thread
(the default), which does not spin, other work on the machine hardly changes it; the report has the
wall-clock time too. Saved bytes are sums over the step's saved values, and exact; weights are
random, since neither bytes nor time depend on their values. ``auto`` gets ``--auto-share`` of the
bytes of 4 bits, or all of them where nothing smaller is possible.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.pack.capture import Captured, open_source
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import run_graph
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.machine import machine
from s2a_edge.spec.tunable import adapter_of

MODELS = ("vit_base_patch16_224", "swin_tiny_patch4_window7_224", "resnet50")
ADAPTERS = ("bias", "lrp", "lsb", "bias,lrp,lsb")
BITS = ("32", "8", "4", "auto")
MIB = 2**20
_CLASSES = 10


@dataclass
class Row:
    """One choice; sizes of one image, shares of all parameters.

    Attributes:
        adapters: as ``--adapters`` takes them.
        bits: of a saved value, or ``auto``.
        trainables: parameters, the head's not among them.
        share, share_with_head: of the model's parameters, 0..1.
        saved_bytes: kept between forward and backward, for each image.
        arena_bytes: the planned arena of the step.
        process_peak_bytes: of each process that ran the step, mapped weights left out.
        cpu_ms, step_ms: processor and wall-clock time of each timed run of the step.
    """

    model: str
    adapters: str
    bits: str
    trainables: int
    share: float
    share_with_head: float
    saved_bytes: float
    arena_bytes: int = 0
    process_peak_bytes: list[int] = dataclasses.field(default_factory=list)
    cpu_ms: list[float] = dataclasses.field(default_factory=list)
    step_ms: list[float] = dataclasses.field(default_factory=list)


def main() -> int:
    """Measures all choices and prints a table for each model."""
    options = _options()
    rows: list[Row] = []
    for model in options.models:
        captured = open_source(f"timm:{model}", input_shape=None, weights=None, features=None,
                               pool=None, seed=0)
        with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
            rows += _measure(model, captured, options, Path(folder))
    report = {"command": " ".join(["python", "tools/bench_adapters.py", *sys.argv[1:]]),
              "machine": machine(), "versions": _versions(), "batch": options.batch,
              "threads": options.threads, "rows": [dataclasses.asdict(row) for row in rows]}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(table(model, [r for r in rows if r.model == model])
                      for model in options.models))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm models")
    parser.add_argument("--adapters", nargs="+", default=ADAPTERS,
                        help="choices, each as pack's --adapters takes it")
    parser.add_argument("--bits", nargs="+", default=BITS, help="as pack's --bits takes them")
    parser.add_argument("--only", nargs="+", metavar="ADAPTERS:BITS", help="of all combinations")
    parser.add_argument("--rank", type=int, default=PackOptions.rank)
    parser.add_argument("--reduce", type=int, default=PackOptions.reduce)
    parser.add_argument("--blocks", default=PackOptions.blocks)
    parser.add_argument("--auto-share", type=float, default=0.5,
                        help="bytes of auto, as a share of those of 4 bits")
    parser.add_argument("--auto-samples", type=int, default=1, help="sensitivities measured on")
    parser.add_argument("--batch", type=int, default=4, help="micro-batch")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each choice; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _measure(model: str, captured: Captured, options: argparse.Namespace, folder: Path,
             ) -> list[Row]:
    rows, folders = [], []
    for adapters in options.adapters:
        uniform = 0.0
        for bits in options.bits:
            if options.only and f"{adapters}:{bits}" not in options.only:
                continue
            _say(f"{model}: {adapters} at {bits} bits")
            made = _compiled(captured, adapters, bits, options, int(options.auto_share * uniform))
            rows.append(_row(model, adapters, bits, made, options.batch))
            uniform = rows[-1].saved_bytes if bits == "4" else uniform
            folders.append(folder / str(len(rows)))
            if options.rounds:
                step = made.steps[options.batch].model
                rows[-1].arena_bytes = plan_memory(step, threads=options.threads).plan.arena_bytes
                _emit(made, options.batch, folders[-1])
    for number in range(options.rounds):
        for row, place in zip(rows, folders, strict=True):
            _say(f"{model}, round {number + 1} of {options.rounds}: {row.adapters} {row.bits}")
            run = run_graph(place / "step.onnx", inputs=place / "inputs.npz",
                            arena_bytes=row.arena_bytes, threads=options.threads,
                            repeat=options.steps + 1)
            row.process_peak_bytes.append(run.process_peak_bytes)
            row.step_ms += run.step_ms[1:]
            row.cpu_ms += run.cpu_ms[1:]
    return rows


def _compiled(captured: Captured, adapters: str, bits: str, options: argparse.Namespace,
              auto_bytes: int) -> Compiled:
    """The training step; ``auto_bytes`` are for the saved values of a sample, 0: as 4 bits."""
    recipe: dict[str, Any] = {"bits": int(bits) if bits.isdigit() else bits}
    recipe |= {"rank": options.rank, "reduce": options.reduce, "blocks": options.blocks}
    if bits == "auto" and auto_bytes:
        recipe["saved_budget_bytes"] = auto_bytes
    try:
        return compile_backbone(captured, PackOptions(
            classes=_CLASSES, effective_batch=options.batch, micro_batches=(options.batch,),
            threads=options.threads, calibration_samples=options.auto_samples,
            adapters=tuple(adapters.split(",")), **recipe), lambda stage, detail: None)
    except BudgetError as error:
        _say(f"auto: {error}; the bytes of 4 bits instead")
        return _compiled(captured, adapters, bits, options, 0)


def _row(model: str, adapters: str, bits: str, made: Compiled, batch: int) -> Row:
    sizes: dict[bool, int] = {True: 0, False: 0}
    for t in made.trainables:
        sizes[adapter_of(t.kind) == "head"] += t.initial.size
    body = made.adapted.frozen_parameters + sizes[False]
    saved = sum(value.stored_bytes for value in made.steps[batch].saved)
    return Row(model, adapters, bits, sizes[False], sizes[False] / body,
               (sizes[False] + sizes[True]) / (body + sizes[True]), saved / batch)


def _emit(made: Compiled, batch: int, folder: Path) -> None:
    """The training graph, its weights and stand-in inputs."""
    folder.mkdir()
    step = made.steps[batch].model
    # The inference graph has every weight as a whole, of which the step may read parts.
    weights = {e.name: e for e in emit_weights([step, made.inference], folder / WEIGHTS_NAME)}
    emit_model(step, weights, folder / "step.onnx")
    rng = np.random.default_rng(0)
    given: dict[str, np.ndarray] = {f"param.{t.name}": t.initial for t in made.trainables}
    given |= {f"acc.{t.name}": np.zeros_like(t.initial) for t in made.trainables}
    for value in step.graph.inputs:
        name, shape = str(value.name), shape_of(value)
        if name not in given:
            given[name] = rng.standard_normal(shape).astype(dtype_of(value).numpy())
    given["target"] = np.eye(_CLASSES, dtype=np.float32)[np.arange(batch) % _CLASSES]
    given["weight"] = np.full(batch, 1 / batch, np.float32)
    np.savez(folder / "inputs.npz", **given)  # type: ignore[arg-type]  # names are data


def table(model: str, rows: Iterable[Row]) -> str:
    """Markdown: a line for each choice of adapters and bits.

    Times are medians, and their ratio to the first row's; peaks are the largest seen.
    """
    rows = list(rows)
    lines = [f"| {model} | bits | tunable | with head | saved MB / image | arena MiB | "
             "process peak MiB | CPU ms | × |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        cells = [row.adapters.replace(",", " + "), row.bits, f"{row.share:.2%}",
                 f"{row.share_with_head:.2%}", f"{row.saved_bytes / 1e6:.2f}",
                 *_measured(row, rows[0])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(row: Row, first: Row) -> tuple[str, ...]:
    if not row.cpu_ms:
        return ("", "", "", "")
    ms = statistics.median(row.cpu_ms)
    return (f"{row.arena_bytes / MIB:.1f}", f"{max(row.process_peak_bytes) / MIB:.0f}",
            f"{ms:.0f}", f"{ms / statistics.median(first.cpu_ms):.2f}")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("onnxruntime", "torch", "timm")}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
