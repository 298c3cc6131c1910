#!/usr/bin/env python3
"""Order and arena: what the scheduler, the search and fronts in parts do to the plans of steps.

    python tools/bench_order.py --micro-batches 8 4 1 --json out.json

Each model is captured once and compiled twice: as emitted (no front in parts, no pool, the order
of the differentiator with what pays sunk), and as ``pack`` does it. Plans are exact, so nothing is
run; ``bound`` is what no order of that graph and no allocator can do without.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.pack.capture import Captured, open_source
from s2a_edge.pack.compile import compile_backbone, native_step
from s2a_edge.pack.differentiate import StepGraph
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.training_steps import press

MODELS = ("vit_small_patch16_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224",
          "resnet50", "efficientnet_lite0")
MIB = 2**20
_CLASSES = tuple(str(n) for n in range(10))


@dataclass(frozen=True)
class Row:
    """One training step; all in bytes. ``naive_*``: whole fronts, the order as emitted."""

    model: str
    form: str
    micro_batch: int
    naive_live_bytes: int
    naive_arena_bytes: int
    live_bytes: int
    bound_bytes: int
    arena_bytes: int
    nodes: int
    naive_nodes: int
    pool_bytes: int

    @property
    def ratio(self) -> float:
        """Arena over live bytes at the peak."""
        return self.arena_bytes / self.live_bytes


def main() -> int:
    """Plans all steps and prints the table."""
    options = _options()
    rows: list[Row] = []
    for model in options.models:
        captured = open_source(f"timm:{model}", input_shape=None, weights=None, features=None,
                               pool=None, seed=0)
        rows += measure(model, captured, tuple(options.micro_batches), options.threads)
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1) + "\n",
                                encoding="utf-8")
    print(table(rows))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm models")
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[8, 4, 1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(model: str, captured: Captured, batches: tuple[int, ...], threads: int) -> list[Row]:
    """Both forms of each micro-batch."""
    recipe = PackOptions(labels=_CLASSES, micro_batches=batches, effective_batch=max(batches),
                         threads=threads)
    forms: list[dict[tuple[int, str], StepGraph]] = []
    for options in (dataclasses.replace(recipe, order="naive", front="whole"), recipe):
        made = compile_backbone(captured, options, lambda stage, detail: None)
        steps = {(batch, "portable"): made.steps[batch] for batch in batches}
        for batch in batches:
            press(made.steps[batch].model, options)
            native = native_step(made, batch, options)
            if native is not None:
                steps[batch, "native"] = native
        forms.append(steps)
    naive, searched = forms
    rows = []
    for (batch, form), step in searched.items():
        if (batch, form) not in naive:
            continue
        before = plan_memory(naive[batch, form].model, threads=threads).plan
        plan = plan_memory(step.model, threads=threads).plan
        rows.append(Row(model, form, batch, before.liveness_peak_bytes, before.arena_bytes,
                        plan.liveness_peak_bytes, plan.lower_bound_bytes, plan.arena_bytes,
                        plan.node_count, before.node_count, plan.pool_bytes))
        print(rows[-1], flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """As in BENCHMARKS.md, MiB."""
    head = ("| model | form | micro-batch | naive: live | arena | nodes | live | bound | arena | "
            "of it pool | arena / live | nodes |")
    lines = [head, "|---|---|" + "---:|" * 10]
    for r in sorted(rows, key=lambda r: (MODELS.index(r.model) if r.model in MODELS else 99,
                                         r.form != "portable", -r.micro_batch)):
        sizes = [f"{size / MIB:.1f}" for size in (r.naive_live_bytes, r.naive_arena_bytes,
                                                  r.live_bytes, r.bound_bytes, r.arena_bytes,
                                                  r.pool_bytes)]
        lines.append(f"| {r.model} | {r.form} | {r.micro_batch} | {sizes[0]} | {sizes[1]} | "
                     f"{r.naive_nodes} | {sizes[2]} | {sizes[3]} | {sizes[4]} | {sizes[5]} | "
                     f"{r.ratio:.3f} | {r.nodes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
