#!/usr/bin/env python3
"""Budgets from generous to absurd: planned, measured, chosen configuration, step time, overruns.

    python -m tools.bench_budget --cases vit_small_patch16_224:600,200,60

A case is ``TIMM_MODEL:BUDGET,BUDGET,...`` in MiB, the most generous first; without ``--cases`` all
of ``CASES``. For each model the search of ``pack --auto`` is calibrated once, with random weights
(memory and time do not depend on their values). For each budget it is asked, what it chooses is
packed (once, if several budgets lead to the same), and ``s2a-edge train`` runs two updates on
generated photographs under that budget, in a process of its own that is watched from outside:
resident (RSS) and proportional (PSS), mapped weights, libraries and Python included. Where nothing
fits, the smallest bundle is given to ``train`` with that budget, which has to refuse it with exit
code 3. Allocations of bits, which take minutes to measure, are left out without ``--allocations``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2a_edge.pack.build import pack_captured
from s2a_edge.pack.capture import open_source
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.search.candidates import Candidate
from s2a_edge.pack.search.options import SearchOptions
from s2a_edge.pack.search.search import Search
from s2a_edge.spec.machine import machine
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import requirement
from s2a_edge.spec.units import MIB
from tools.watched_process import watch

CASES = (
    "vit_small_patch16_224:600,200,60",
    "vit_base_patch16_224:1000,300,60",
    "swin_tiny_patch4_window7_224:600,200,60",
    "resnet50:500,200,60",
    "tf_efficientnet_lite0:400,130,60",
)
LABELS = ("a", "b")
_UPDATES = 2
_REFUSED = 3
_PIXELS = 256


def main() -> int:
    """Runs all cases and prints the table."""
    options = _options()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-budget-") as folder:
        data = _photographs(Path(folder) / "photos", options.batch * _UPDATES)
        for case in options.cases:
            name, _, budgets = case.partition(":")
            if not budgets or not all(b.isdecimal() for b in budgets.split(",")):
                sys.exit(f"error: --cases: expected MODEL:MIB,MIB,..., got {case}")
            place = Path(folder) / name
            place.mkdir()
            sizes = [int(b) * MIB for b in budgets.split(",")]
            rows += _case(options, name, sizes, place, data)
            print(_table(rows), file=sys.stderr, flush=True)
    report = {"command": " ".join(["python", "-m", "tools.bench_budget", *sys.argv[1:]]),
              "machine": machine(), "batch": options.batch, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{machine()}; effective batch {options.batch}\n`{report['command']}`\n\n{_table(rows)}")
    return 1 if any(row["overrun"] for row in rows) else 0


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", nargs="+", metavar="MODEL:MIB,MIB", default=list(CASES))
    parser.add_argument("--batch", type=int, default=8, help="effective batch")
    parser.add_argument("--allocations", action="store_true",
                        help="weigh bits for each value too, as pack --auto does")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _photographs(folder: Path, count: int) -> Path:
    """Class folders of JPEG files, whose content does not matter."""
    rng = np.random.default_rng(0)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (_PIXELS, _PIXELS, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / LABELS[number % len(LABELS)] / f"{number}.jpg")
    return folder


def _case(options: argparse.Namespace, name: str, budgets: list[int], folder: Path, data: Path,
          ) -> list[dict[str, Any]]:
    """The rows of one model."""
    base = PackOptions(labels=LABELS, effective_batch=options.batch, budget_bytes=budgets[0],
                       auto=SearchOptions())
    captured = open_source(f"timm:{name}", seed=0)
    scratch = folder / "search"
    scratch.mkdir()
    started_s = time.monotonic()
    search = Search(captured, base, scratch, _said)
    if not options.allocations:
        search.allocations = ()
    packed: dict[Candidate, tuple[Path, Manifest]] = {}
    rows: list[dict[str, Any]] = []
    for budget_bytes in budgets:
        _said("budget", f"{name}, {budget_bytes // MIB} MiB")
        choice = search.find(budget_bytes)
        key = choice.row.candidate
        # What does not fit is refused, whichever bundle of the model it is: the smallest there is.
        if not choice.fits and packed:
            key = min(packed, key=lambda k: requirement(packed[k][1]).total_bytes)
        if key not in packed:
            room_bytes = budget_bytes if choice.fits else 2**40
            made = pack_captured(captured, folder / f"bundle{len(packed)}",
                                 replace(base, budget_bytes=room_bytes), _said,
                                 search if choice.fits else None)
            key = choice.row.candidate
            packed[key] = made.path, made.manifest
        bundle, manifest = packed[key]
        run = _trained(bundle, data, budget_bytes, folder / f"run{len(rows)}")
        rows.append(_row(name, budget_bytes, manifest, run, fits=choice.fits))
    rows[0]["search_s"] = time.monotonic() - started_s
    return rows


def _trained(bundle: Path, data: Path, budget_bytes: int, out: Path) -> dict[str, Any]:
    """Exit code of a training, and the most that its process held, polled while it ran."""
    command = [sys.executable, "-m", "s2a_edge", "train", str(bundle), "--data", str(data),
               "--val", str(data), "--epochs", "1", "--lr", "1e-3", "--budget", str(budget_bytes),
               "--no-step-down", "--out", str(out), "--quiet"]
    done = watch(command)
    if done.exit_code not in (0, _REFUSED):
        sys.exit(f"error: {' '.join(command)} ended with {done.exit_code}: {done.said}")
    return {"exit": done.exit_code, "said": done.said, "rss_bytes": done.rss_bytes,
            "pss_bytes": done.pss_bytes}


def _row(name: str, budget_bytes: int, manifest: Manifest, run: dict[str, Any], *, fits: bool,
         ) -> dict[str, Any]:
    refused = run["exit"] == _REFUSED
    if refused == fits:
        # Training measures Python and the runtime in its own process, which may take more.
        _said("note", f"pack says {'that it fits' if fits else 'that it does not'}; "
              f"train ended with {run['exit']}: {run['said']}")
    train = max(manifest.graphs.train, key=lambda graph: graph.batch)
    form = train.native or train
    search = manifest.recipe.search
    chosen = None if search is None else search.rows[search.chosen]
    steps = -(-manifest.recipe.effective_batch // train.batch)
    return {
        "model": name, "budget_bytes": budget_bytes,
        "verdict": ("packed, refused by train (exit 3)" if fits else "refused, exit 3")
        if refused else "trained",
        "chosen": "" if chosen is None or refused else chosen.flags,
        "arena_planned_bytes": train.plan.arena_bytes,
        "arena_measured_bytes": train.evidence.arena_measured_bytes,
        "required_bytes": requirement(manifest).total_bytes,
        "predicted_bytes": None if chosen is None else chosen.total_bytes,
        "predicted_ms": None if chosen is None else chosen.step_ms,
        "step_ms": form.evidence.step_ms * steps, **run,
        # A process that refuses holds Python and the runtime, however small the budget.
        "overrun": not refused and run["rss_bytes"] > budget_bytes,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    names = ("model", "budget MiB", "verdict", "chosen", "arena planned / measured MiB", "ratio",
             "requirement MiB", "process RSS MiB", "PSS MiB", "overrun", "update ms",
             "predicted ms")
    lines = ["| " + " | ".join(names) + " |", "|---|---:|---|---|" + "---:|" * 8]
    for row in rows:
        mib = {key[:-6]: f"{value / MIB:.1f}" for key, value in row.items()
               if key.endswith("_bytes") and value is not None}
        if row["verdict"] != "trained":
            lines.append(f"| {row['model']} | {row['budget_bytes'] // MIB} | {row['verdict']} | "
                         f"| | | {mib['required']} | | | no | | |")
            continue
        ratio = row["arena_planned_bytes"] / row["arena_measured_bytes"]
        lines.append(
            f"| {row['model']} | {row['budget_bytes'] // MIB} | {row['verdict']} | "
            f"`{row['chosen']}` | {mib['arena_planned']} / {mib['arena_measured']} | "
            f"{ratio:.3f} | {mib['required']} | {mib['rss']} | {mib['pss']} | "
            f"{'**yes**' if row['overrun'] else 'no'} | {row['step_ms']:.0f} | "
            f"{row['predicted_ms']:.0f} |")
    return "\n".join(lines)


def _said(stage: str, detail: str) -> None:
    print(f"[{time.process_time():7.1f} s of this process] {stage}: {detail}", file=sys.stderr,
          flush=True)


if __name__ == "__main__":
    sys.exit(main())
