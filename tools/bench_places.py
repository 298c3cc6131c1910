#!/usr/bin/env python3
"""What fronts in parts and pools cost in time: one training step made in three ways, in turn.

    python -m tools.bench_places --models resnet50 efficientnet_lite0 --micro-batches 8 1

``whole``: the front for the whole micro-batch, everything in the runtime's arena. ``parts``: wide
fronts in parts of the micro-batch. ``pool``: as ``pack`` makes it, with planned places and bands of
rows too. Times are of the portable step, by the clock and of processors, medians over all rounds
with each process's first step left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.pack.build import pack
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.rehearse import run_graph
from s2a_edge.spec.machine import machine
from s2a_edge.spec.manifest import BatchGraph, Manifest
from s2a_edge.spec.units import MIB

_LABELS = ("a", "b")
_STEPS = 6


def main() -> int:
    """Packs and times all steps and prints the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=["resnet50", "efficientnet_lite0"],
                        help="timm models")
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[8, 1],
                        help="of one bundle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-places-") as folder:
        for model in options.models:
            rows += _rows(model, tuple(options.micro_batches), options.rounds, Path(folder))
    if options.json:
        report = {"machine": machine(), "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(machine())
    print("| model | micro-batch | way | arena MiB | of it pool | nodes | step ms (min-max) | "
          "processor ms | n |\n|---|---:|---|" + "---:|" * 6)
    for row in rows:
        print("| {model} | {batch} | {way} | {arena:.1f} | {pool:.1f} | {nodes} | "
              "{ms:.0f} ({least:.0f}-{most:.0f}) | {cpu_ms:.0f} | {n} |".format(**row))
    return 0


def _rows(model: str, batches: tuple[int, ...], rounds: int, folder: Path) -> list[dict[str, Any]]:
    recipe = PackOptions(labels=_LABELS, micro_batches=batches, effective_batch=max(batches),
                         threads=len(os.sched_getaffinity(0)), native=False)
    ways = {"whole": dataclasses.replace(recipe, front="whole", places="arena"),
            "parts": dataclasses.replace(recipe, places="arena"), "pool": recipe}
    bundles = {way: pack(f"timm:{model}", folder / f"{model}-{way}", o) for way, o in ways.items()}
    rows = []
    for number, batch in enumerate(sorted(batches)):
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, bundle in bundles.items():
                times[way] += _timed(bundle.path, bundle.manifest,
                                     bundle.manifest.graphs.train[number])
        for way, bundle in bundles.items():
            plan = bundle.manifest.graphs.train[number].plan
            clock = [ms for ms, _ in times[way]]
            rows.append({
                "model": model, "batch": batch, "way": way, "arena": plan.arena_bytes / MIB,
                "pool": plan.pool_bytes / MIB, "nodes": plan.node_count,
                "ms": statistics.median(clock), "least": min(clock), "most": max(clock),
                "cpu_ms": statistics.median(cpu for _, cpu in times[way]), "n": len(clock),
            })
    return rows


def _timed(bundle: Path, manifest: Manifest, graph: BatchGraph) -> list[tuple[float, float]]:
    """Milliseconds by the clock and of processors of each step but the first."""
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {
        i.name: rng.standard_normal((graph.batch, *i.shape)).astype(i.dtype)
        for i in manifest.inputs}
    feeds["target"] = np.eye(len(_LABELS), dtype=np.float32)[[0] * graph.batch]
    feeds["weight"] = np.full(graph.batch, 1 / graph.batch, np.float32)
    for t in manifest.trainables:
        feeds[f"param.{t.name}"] = feeds[f"acc.{t.name}"] = np.zeros(t.shape, np.float32)
    inputs = bundle.with_name("inputs.npz")
    np.savez(inputs, **feeds)  # type: ignore[arg-type]  # names are data
    run = run_graph(bundle / graph.file, inputs=inputs, arena_bytes=graph.plan.arena_bytes,
                    pool_bytes=graph.plan.pool_bytes, threads=len(os.sched_getaffinity(0)),
                    repeat=1 + _STEPS)
    return list(zip(run.step_ms[1:], run.cpu_ms[1:], strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
