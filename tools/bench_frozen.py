#!/usr/bin/env python3
"""Frozen weights at 32, 16, 8 and 4 bits: memory of a real training, and the time of a step.

    python -m tools.bench_frozen --data photos --model vit_base_patch16_224 --cases fp32:1 int4:1

A case is ``STORAGE:MICRO_BATCH``, with ``:products`` behind it for ``--recompute products``. Each
is packed, with random weights (memory and time do not depend on their values), and trained for one
update of ``--batch`` real images by ``s2a-edge train`` in a process of its own. That process is
watched from outside: the most it held, resident (RSS) and proportional (PSS), mapped weights,
libraries and Python included. Step times are of the rehearsal, in processor time too, which other
work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np

from s2a_edge.pack.recompute import Recompute
from s2a_edge.pack.rehearse import run_graph
from s2a_edge.spec.frozen_weights import FrozenStorage
from s2a_edge.spec.machine import machine
from s2a_edge.spec.manifest import Manifest, NativeGraph
from s2a_edge.spec.requirement import LineKind, Setting, requirement
from s2a_edge.spec.units import MIB
from tools.watched_process import watch

_COLUMNS = (("process peak, RSS", "rss_bytes"), ("PSS", "pss_bytes"), ("planned", "planned_bytes"),
            ("weights", "weights_bytes"), ("arena", "arena_bytes"), ("sessions", "sessions_bytes"))


def main() -> int:
    """Runs all cases and prints the table."""
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-frozen-") as folder:
        for case in options.cases:
            storage, micro, *more = case.split(":") if ":" in case else (case, "")
            if (storage not in get_args(FrozenStorage) or not micro.isdecimal()
                    or more not in ([], ["products"])):
                sys.exit(f"error: --cases: expected STORAGE:MICRO_BATCH[:products], got {case}")
            print(case, file=sys.stderr, flush=True)
            rows.append(_case(options, storage, int(micro), "products" if more else "cheap",
                              Path(folder) / case.replace(":", "-")))
    report = {"command": " ".join(["python", "-m", "tools.bench_frozen", *sys.argv[1:]]),
              "machine": machine(), "model": options.model, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(_table(report))
    return 0


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="class folders of images")
    parser.add_argument("--model", default="vit_base_patch16_224", help="a timm model")
    parser.add_argument("--cases", nargs="+", metavar="STORAGE:MICRO",
                        default=["fp32:1", "fp16:1", "int8:1", "int4:1"])
    parser.add_argument("--batch", type=int, default=32, help="effective batch")
    parser.add_argument("--repeat", type=int, default=4, help="timed steps of each form")
    parser.add_argument("--python", default=sys.executable,
                        help="interpreter that trains: one of an environment like a board's")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _case(options: argparse.Namespace, storage: str, micro: int, recompute: Recompute,
          bundle: Path) -> dict[str, Any]:
    from s2a_edge.pack.build import pack
    from s2a_edge.pack.options import PackOptions

    labels = tuple(sorted(p.name for p in options.data.iterdir() if p.is_dir()))
    recipe = PackOptions(labels=labels, effective_batch=options.batch, micro_batches=(micro,),
                         recompute=recompute,
                         frozen=storage)  # type: ignore[arg-type]  # checked by main
    manifest = pack(f"timm:{options.model}", bundle, recipe).manifest
    needed = requirement(manifest, setting=Setting(evaluation=False))  # there is no --val
    graphs = manifest.graphs
    train = graphs.train[0]
    forms: dict[str, Any] = {"portable": train} | ({"native": train.native} if train.native else {})
    return {
        "storage": storage + (", products again" if recompute == "products" else ""),
        "micro_batch": micro, **_watched(options, bundle),
        "planned_bytes": needed.total_bytes, "arena_bytes": needed.arena_bytes,
        "weights_bytes": max(w.offset + w.size_bytes for w in manifest.weights),
        "sessions_bytes": needed.of_kind(LineKind.SESSIONS),
        "logits_error": manifest.frozen.logits_error,
        "steps": {name: _timed(options, bundle, manifest, form) for name, form in forms.items()},
    }


def _watched(options: argparse.Namespace, bundle: Path) -> dict[str, int]:
    """The most a training process held, polled while it ran."""
    out = bundle.with_name(f"{bundle.name}-run")
    command = [options.python, "-m", "s2a_edge", "train", str(bundle), "--data", str(options.data),
               "--epochs", "1", "--lr", "1e-3", "--out", str(out), "--quiet"]
    done = watch(command)
    if done.exit_code:
        sys.exit(f"error: {' '.join(command)} ended with {done.exit_code}: {done.said}")
    return {"rss_bytes": done.rss_bytes, "pss_bytes": done.pss_bytes}


def _timed(options: argparse.Namespace, bundle: Path, manifest: Manifest, form: Any,
           ) -> dict[str, float]:
    """Milliseconds of a step, by the clock and of processors; medians, the first step left out."""
    kernels = None
    if isinstance(form, NativeGraph):
        from s2a_edge.native.library import find_library

        kernels = find_library()
    rng = np.random.default_rng(0)
    micro = manifest.graphs.train[0].batch
    feeds: dict[str, np.ndarray] = {
        i.name: rng.standard_normal((micro, *i.shape)).astype(i.dtype) for i in manifest.inputs}
    feeds["target"] = np.eye(manifest.task.classes, dtype=np.float32)[[0] * micro]
    feeds["weight"] = np.full(micro, 1 / micro, np.float32)
    for t in manifest.trainables:
        feeds[f"param.{t.name}"] = feeds[f"acc.{t.name}"] = np.zeros(t.shape, np.float32)
    inputs = bundle.with_name("inputs.npz")
    np.savez(inputs, **feeds)  # type: ignore[arg-type]  # names are data
    run = run_graph(bundle / form.file, inputs=inputs, arena_bytes=form.plan.arena_bytes,
                    pool_bytes=form.plan.pool_bytes, threads=len(os.sched_getaffinity(0)),
                    repeat=1 + options.repeat, kernels=kernels)
    return {"ms": statistics.median(run.step_ms[1:]), "cpu_ms": statistics.median(run.cpu_ms[1:])}


def _table(report: dict[str, Any]) -> str:
    lines = [f"{report['model']}; {report['machine']}", f"`{report['command']}`", "",
             "| weights | micro-batch | " + " | ".join(f"{name} MiB" for name, _ in _COLUMNS)
             + " | step ms (processor ms): portable | native |",
             "|---|" + "---:|" * (len(_COLUMNS) + 3)]
    for row in report["rows"]:
        sizes = " | ".join(f"{row[key] / MIB:.1f}" for _, key in _COLUMNS)
        steps = [row["steps"].get(form) for form in ("portable", "native")]
        times = " | ".join(f"{s['ms']:.0f} ({s['cpu_ms']:.0f})" if s else "" for s in steps)
        lines.append(f"| {row['storage']} | {row['micro_batch']} | {sizes} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
