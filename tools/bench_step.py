#!/usr/bin/env python3
"""One training step: ours against PyTorch, memory and time, same machine, same run.

    python tools/bench_step.py --model vit_base_patch16_224 --batch 8
    python tools/bench_step.py --model resnet50 --batch 8 --json out.json
    python tools/bench_step.py --engine cuda --batch 32   # onnxruntime-gpu, torch with CUDA

Every configuration runs in a process of its own, in turn (A B C A B C ...), so that a machine whose
speed drifts treats all alike. Process figures are the kernel's (VmHWM, RssAnon, RssFile); the
arena's peak is the smallest limit under which the packed step was seen to run. On CUDA `device` is
what the process took of the device beside its context (cudaMemGetInfo).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from s2a_edge.spec.machine import machine

TORCH = ("torch-full", "torch-lora", "torch-bias")
AUTOCAST = tuple(f"{name}-amp" for name in TORCH)  # on CUDA: float16 where autocast takes it
OURS = ("ours-32", "ours-8", "ours-4", "ours-4-portable")  # without kernels in C
MIB = 2**20
_HERE = Path(__file__).resolve().parent
_CLASSES = 10
_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "torch", "timm")


def main() -> int:
    """Runs all configurations and prints the table."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        bundles = {name: _pack(options, name, Path(folder)) for name in options.configurations
                   if name in OURS}
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in options.configurations}
        for number in range(options.rounds):
            for name in options.configurations:
                _say(f"round {number + 1} of {options.rounds}: {name}")
                samples[name].append(_work(options, name, bundles.get(name)))
    report = {"command": " ".join(["python", "tools/bench_step.py", *sys.argv[1:]]),
              "machine": _machine(), "model": options.model, "batch": options.batch,
              "engine": options.engine, "rounds": options.rounds, "steps": options.steps,
              "rows": [_row(name, runs) for name, runs in samples.items()]}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(_table(report))
    return 0


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="a timm model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each configuration")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--engine", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--configurations", nargs="+", choices=[*TORCH, *AUTOCAST, *OURS])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    on_cuda = options.engine == "cuda"
    # Kernels in C are the CPU's, autocast to float16 is CUDA's.
    usual = [*TORCH, *AUTOCAST, *OURS[:3]] if on_cuda else [*TORCH, *OURS]
    options.configurations = options.configurations or usual
    wrong = set(options.configurations) - set(usual)
    if wrong:
        parser.error(f"{', '.join(sorted(wrong))}: not with --engine {options.engine}")
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _pack(options: argparse.Namespace, name: str, folder: Path) -> Path:
    """A bundle of the model with random weights: time and memory do not depend on their values."""
    from s2a_edge.pack.build import pack
    from s2a_edge.pack.options import PackOptions

    _say(f"packing {name}")
    recipe = PackOptions(labels=tuple(f"class{i}" for i in range(_CLASSES)),
                         effective_batch=options.batch, micro_batches=(options.batch,),
                         bits=int(name.split("-")[1]), threads=options.threads,
                         native=options.engine == "cpu" and not name.endswith("portable"))
    return pack(f"timm:{options.model}", folder / name, recipe).path


def _work(options: argparse.Namespace, name: str, bundle: Path | None) -> dict[str, Any]:
    worker = "bench_worker_ours.py" if bundle else "bench_worker_torch.py"
    request = {"configuration": name, "model": options.model, "batch": options.batch,
               "engine": options.engine, "steps": options.steps, "threads": options.threads,
               "classes": _CLASSES,
               "bundle": None if bundle is None else str(bundle)}
    done = subprocess.run([sys.executable, str(_HERE / worker), json.dumps(request)],
                          stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(_HERE.parent),
                               "OMP_NUM_THREADS": str(options.threads)})
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median over processes; a step's time is the median over all steps of all processes."""
    steps = [ms for run in runs for ms in run["step_ms"]]
    row = {key: statistics.median(run[key] for run in runs)
           for key, value in runs[0].items()
           if key not in ("step_ms", "plan", "kernels") and value is not None}
    plan = runs[0].get("plan") or {}
    return {"configuration": name, "n": len(steps), "kernels": runs[0].get("kernels"),
            "step_ms": statistics.median(steps),
            "step_ms_min": min(steps), "step_ms_max": max(steps), **row, **plan}


def _table(report: dict[str, Any]) -> str:
    columns = [("process peak", "peak_bytes"), ("anonymous", "anon_bytes"),
               ("mapped files", "file_bytes"), ("device", "device_bytes"),
               ("arena measured", "arena_measured_bytes"),
               ("arena planned", "arena_bytes"), ("liveness", "liveness_peak_bytes"),
               ("saved", "saved_bytes")]
    if report["engine"] == "cpu":
        columns.remove(("device", "device_bytes"))
    lines = [f"{report['model']}, batch {report['batch']}; {report['machine']}",
             f"`{report['command']}`", "",
             "| configuration | " + " | ".join(f"{c} MiB" for c, _ in columns)
             + " | step ms (min-max) | n |",
             "|---|" + "---:|" * (len(columns) + 2)]
    for row in report["rows"]:
        sizes = [f"{row[key] / MIB:.1f}" if row.get(key) is not None else "" for _, key in columns]
        step = f"{row['step_ms']:.0f} ({row['step_ms_min']:.0f}-{row['step_ms_max']:.0f})"
        lines.append(f"| {row['configuration']} | {' | '.join(sizes)} | {step} | {row['n']} |")
    return "\n".join([*lines, "", *_ratios(report)])


def _ratios(report: dict[str, Any]) -> list[str]:
    rows = {row["configuration"]: row for row in report["rows"]}
    ours = rows.get("ours-4")
    if ours is None:
        return []
    tight = ours["arena_measured_bytes"] / ours["liveness_peak_bytes"]
    lines = [f"- arena / liveness: {tight:.3f}"]
    for name, row in rows.items():
        if name != "ours-4":
            peak, time = (ours[key] / row[key] for key in ("peak_bytes", "step_ms"))
            lines.append(f"- ours-4 against {name}: process peak x{peak:.3f}, "
                         f"step time x{time:.3f}")
    return lines


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES if _is_installed(name))
    return f"{machine()}, Python {platform.python_version()}, {packages}"


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
