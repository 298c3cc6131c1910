#!/usr/bin/env python3
"""The board side on several releases of onnxruntime, on bundles packed with the current one.

    python -m tools.ort_matrix --cache out/ort
    python -m tools.ort_matrix --versions onnxruntime==1.32.0 onnxruntime==1.24.4 --json out.json
    python -m tools.ort_matrix --bundle out/solar.s2a

Packs a tiny ViT and a tiny ResNet at 4 and 32 bits. Every release gets an environment of its own
with what a board has: numpy, safetensors, Pillow, typer, rich; no torch, no onnx. There it checks,
trains two epochs inside a budget, is interrupted and resumes, evaluates, exports, and runs what it
exported. Compared with the first version of the list: the losses of all steps and the exported
model's logits. Beside the arena limit that training gives this release stands the smallest one
under which it was seen to run. Exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from s2a_edge.spec.machine import machine
from tools.ort_matrix_case import Case, Environment, Result, run_case, write_samples

VERSIONS = ("onnxruntime==1.32.0", "onnxruntime==1.23.2", "onnxruntime==1.22.1",
            "onnxruntime-training-cpu==1.19.2")
MODELS = ("tiny_vit", "tiny_resnet")
BITS = (4, 32)
# What `pip install s2a-edge` brings besides the runtime.
_BOARD = ("numpy", "safetensors", "Pillow", "typer", "rich", "tomli; python_version < '3.11'")
_ROOT = Path(__file__).resolve().parent.parent
_LABELS = ("a", "b", "c", "d", "e")


def main() -> int:
    options = _options()
    environments = {v: _environment(v, options) for v in options.versions}
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="ort-matrix-") as folder:
        work = Path(folder)
        bundles = {**_tiny_bundles(options, work), **{b.stem: b for b in options.bundle}}
        for name, bundle in bundles.items():
            samples = write_samples(bundle, work / f"data-{name}", real=bundle in options.bundle)
            first: Result | None = None
            for requirement, environment in environments.items():
                _say(f"{name} on {requirement}")
                place = work / f"{name}-{requirement}"
                case = Case(requirement, name, bundle, samples, place, options.threads)
                results.append(run_case(case, environment, reference=first))
                first = first or results[-1]
    report = {
        "command": " ".join(["python", "-m", "tools.ort_matrix", *sys.argv[1:]]),
        "machine": f"{machine()}, {options.threads} threads, Python "
        f"{platform.python_version()}",
        "results": [asdict(result) for result in results],
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{report['machine']}\n`{report['command']}`\n\n{table(results)}")
    return 0 if all(result.ok for result in results) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), metavar="REQUIREMENT",
                        help="the first one is what the others are compared with")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS))
    parser.add_argument("--bundle", nargs="+", type=Path, default=[], help="further bundles")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/s2a-edge/ort-matrix",
                        help="where environments are kept and found again")
    parser.add_argument("--python", default=sys.executable, help="what environments are made of")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _environment(requirement: str, options: argparse.Namespace) -> Environment:
    """The environment of one release; made unless the cache has it whole."""
    folder = options.cache.resolve() / requirement
    python, ready = folder / "bin/python", folder / "ready"
    if not ready.exists():
        _say(f"installing {requirement} into {folder}")
        _run([options.python, "-m", "venv", "--clear", str(folder)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Without its dependencies: the training wheel asks for onnx, which no board has, and the
        # others for packages that only their conversion tools use.
        _run([*pip, "--no-deps", requirement])
        _run([*pip, *_BOARD])
        ready.touch()
    absent = ("from importlib.util import find_spec as f; "
              "assert f('torch') is f('onnx') is f('onnx_ir') is None")
    _run([str(python), "-c", absent])
    return Environment(python, _ROOT)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _tiny_bundles(options: argparse.Namespace, work: Path) -> dict[str, Path]:
    from s2a_edge.pack.build import pack
    from s2a_edge.pack.options import PackOptions

    # The models of the test suite, as a user's factory. (As tests.pack.models they would depend on
    # nobody having installed a package that is called tests.)
    sys.path.insert(0, str(_ROOT / "tests/pack"))
    made = {}
    for model in options.models:
        for bits in options.bits:
            _say(f"packing {model} at {bits} bits")
            recipe = PackOptions(labels=_LABELS, effective_batch=16, micro_batches=(8,),
                                 bits=bits, threads=options.threads)
            name = f"{model}-{bits}"
            made[name] = pack(f"models:{model}", work / name, recipe).path
    return made


def table(results: list[Result]) -> str:
    """All results in Markdown."""
    columns = ("runtime", "bundle", "works", "losses", "exported logits", "arena: smallest / limit",
               "process peak / needed, MiB", "step ms")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(_row(result) for result in results)])


def _row(result: Result) -> str:
    arenas = ", ".join(
        f"{name.removesuffix('.onnx')} {x['smallest_bytes'] / x['limit_bytes']:.3f}"
        + ("" if x["holds"] else " **too small**")
        + (f" (limit {x['limit_bytes'] / x['plan_bytes']:.2f} of plan)"
           if x["limit_bytes"] != x["plan_bytes"] else "")
        for name, x in result.arenas.items())
    memory = ""
    if result.peak_bytes is not None and result.needed_bytes is not None:
        memory = f"{result.peak_bytes / 2**20:.1f} / {result.needed_bytes / 2**20:.1f}"
    step_ms = next((x["step_ms"] for x in result.arenas.values()), None)
    works = "all" if result.ok else "; ".join(f"{k}: {v}" for k, v in result.failed.items())
    cells = (result.requirement, result.bundle, works, result.losses_against_first,
             result.logits_against_first, arenas, memory,
             "" if step_ms is None else f"{step_ms:.1f}")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
