"""The rehearsal: every graph of a bundle runs on this host before the bundle exists.

The board's own runtime code does it, in a fresh process per measurement (one process can hold one
arena limit, and only a fresh process has a clean peak), started as ``s2a-edge train`` is, so that
it holds the same code. What is measured: that the graph runs inside the planned arena, how small
the arena may really be, the process's memory, the time of a step, and the gradients against those
of the uncompressed step.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.spec.errors import InternalError, SourceError, StorageError
from s2a_edge.spec.machine import machine
from s2a_edge.spec.memory_plan import Evidence, GradientError, MemoryPlan

# Bisection ends when the bracket is this share of the plan.
_RESOLUTION = 0.005
# How far below the plan the search goes: a plan more than this above the truth is too loose.
_SEARCH_BELOW = 0.12
# Gradients whose true norm is below this share of the largest are compared on that scale: a key
# bias, for one, has a true gradient of exactly zero.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Rehearsed:
    """One run of a graph in a process of its own; sizes in bytes, times in ms."""

    ok: bool
    failure: str
    runtime_base_bytes: int
    session_bytes: int
    process_peak_bytes: int
    step_ms: tuple[float, ...]
    onnxruntime: str
    cpu_ms: tuple[float, ...] = ()
    node_ms: Mapping[str, float] = field(default_factory=dict)


def run_graph(graph: Path, *, inputs: Path, arena_bytes: int | None, pool_bytes: int | None = None,
              threads: int | None = None, repeat: int = 1, outputs: Path | None = None,
              kernels: Path | None = None, profile: Path | None = None) -> Rehearsed:
    """Runs ``graph`` in a subprocess of the board's runtime.

    With ``profile``, the start of a file name, each node is timed; its memory then is no evidence.

    Args:
        graph: weights lie beside it.
        inputs: npz of all of its inputs.
        arena_bytes: limit of arena and pool together; None: none.
        pool_bytes: how much of it is the pool's.
        threads: of one operator.
        repeat: runs.
        outputs: where to write the outputs of the last run.
        kernels: library of kernels in C.
        profile: start of a file name.

    Raises:
        StorageError: if the disk refuses the outputs.
        InternalError: if the subprocess breaks in another way than by its memory limit.
    """
    request = {"graph": str(graph), "inputs": str(inputs),
               "arena_bytes": None if arena_bytes is None else arena_bytes - (pool_bytes or 0),
               "pool_bytes": pool_bytes,
               "threads": threads, "repeat": repeat,
               "outputs": None if outputs is None else str(outputs),
               "kernels": None if kernels is None else str(kernels),
               "profile": None if profile is None else str(profile)}
    done = subprocess.run([sys.executable, "-m", "s2a_edge", "rehearse"],
                          input=json.dumps(request), capture_output=True, text=True, check=False,
                          env=subprocess_environment())
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise InternalError(where=f"rehearsal of {graph.name}", expected="a JSON answer",
                            got=f"exit {done.returncode}: {done.stderr.strip()[-400:]}",
                            todo="report this") from error
    if answer.get("disk"):
        raise StorageError(where=str(outputs), expected="room for the rehearsal's outputs",
                           got=str(answer["disk"]), todo="free space or choose another --out")
    if not answer["ok"] and not answer.get("out_of_memory", False):
        raise InternalError(where=f"rehearsal of {graph.name}", expected="a run",
                            got=str(answer.get("error"))[:400], todo="report this")
    return Rehearsed(bool(answer["ok"]), str(answer.get("error") or ""),
                     int(answer.get("runtime_base_bytes") or 0),
                     int(answer.get("session_bytes") or 0),
                     int(answer.get("process_peak_bytes") or 0),
                     tuple(answer.get("step_ms") or ()), str(answer.get("onnxruntime") or "?"),
                     tuple(answer.get("cpu_ms") or ()), answer.get("node_ms") or {})


def subprocess_environment() -> dict[str, str]:
    """A subprocess must find this very package, also when it is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def rehearse(graph: Path, plan: MemoryPlan, inputs: Path, *, repeat: int,
             gradient_error: GradientError | None = None, outputs: Path | None = None,
             threads: int | None = None, kernels: Path | None = None) -> Evidence:
    """Runs ``graph`` inside its planned arena and measures.

    Raises:
        InternalError: if it does not run there: the plan is wrong and the pack has failed.
    """
    run = run_graph(graph, inputs=inputs, arena_bytes=plan.arena_bytes,
                    pool_bytes=plan.pool_bytes, repeat=repeat, outputs=outputs, threads=threads,
                    kernels=kernels)
    if not run.ok:
        raise InternalError(where=f"rehearsal of {graph.name}",
                            expected=f"to run in the planned {plan.arena_bytes} bytes",
                            got=run.failure, todo="report this: the plan is wrong")
    measured = _smallest_arena(graph, plan, inputs, threads, kernels)
    return Evidence(machine=machine(), onnxruntime=run.onnxruntime,
                    arena_measured_bytes=measured, process_peak_bytes=run.process_peak_bytes,
                    runtime_base_bytes=run.runtime_base_bytes, session_bytes=run.session_bytes,
                    step_ms=statistics.median(run.step_ms), n=len(run.step_ms),
                    gradient_error=gradient_error)


def _smallest_arena(graph: Path, plan: MemoryPlan, inputs: Path, threads: int | None,
                    kernels: Path | None = None) -> int:
    """The smallest arena limit under which the graph is seen to run, by bisection.

    A plan is nearly always exact, so the first look is just below it: one failing run there ends
    the search. The pool is what it is; only the runtime's arena shrinks.
    """
    resolution = max(int(_RESOLUTION * plan.arena_bytes), 4096)
    high = plan.arena_bytes
    low = max(int(high * (1 - _SEARCH_BELOW)), plan.pool_bytes)
    middle = high - resolution
    while high - low > resolution and middle > plan.pool_bytes:
        if run_graph(graph, inputs=inputs, arena_bytes=middle, pool_bytes=plan.pool_bytes,
                     threads=threads, kernels=kernels).ok:
            high = middle
        else:
            low = middle
        middle = (low + high) // 2
    return high


def gradient_error(batches: Sequence[tuple[Path, Path]]) -> GradientError:
    """Error of the ``acc_out.*`` of compressed steps against those of exact ones.

    Args:
        batches: of each batch the outputs (npz) of the compressed and of the uncompressed step;
            errors and gradients of all batches count as one vector.

    Per trainable ``‖g - g₀‖ / max(‖g₀‖, floor)``; the floor stands for a root mean square of a
    thousandth of the largest gradient's, so that a gradient that is truly zero does not divide
    by zero.

    Raises:
        SourceError: if the uncompressed gradients are not finite: the backbone's own overflow.
        InternalError: if only the compressed ones are not.
    """
    both = [(_gradients(compressed), _gradients(reference)) for compressed, reference in batches]
    pairs = {name: (np.concatenate([ours[name] for ours, _ in both]),
                    np.concatenate([exact[name] for _, exact in both])) for name in both[0][1]}
    _require_finite(pairs)
    floor = _FLOOR * max(_rms(true) for _, true in pairs.values()) or 1.0
    each = {name: _rms(got - true) / max(_rms(true), floor)
            for name, (got, true) in pairs.items()}
    got = np.concatenate([pair[0] for pair in pairs.values()])
    true = np.concatenate([pair[1] for pair in pairs.values()])
    norms = float(np.linalg.norm(got) * np.linalg.norm(true)) or 1.0
    worst = max(each, key=lambda name: each[name])
    return GradientError(total=_rms(got - true) / (_rms(true) or 1.0),
                         cosine=float(got @ true) / norms, max=each[worst],
                         median=statistics.median(each.values()), worst=worst, each=each)


def output_error(batches: Sequence[tuple[Path, Path]]) -> float:
    """Relative error of a graph's outputs against another's, over all batches.

    Args:
        batches: of each the outputs (npz) of the graph and of the exact one.

    Raises:
        SourceError: if the exact outputs are not finite.
    """
    error = total = 0.0
    for path, exact_path in batches:
        with np.load(path) as archive, np.load(exact_path) as exact:
            for name in exact.files:
                true = exact[name].astype(np.float64)
                error += float(np.square(archive[name] - true).sum())
                total += float(np.square(true).sum())
    if not math.isfinite(total):
        raise SourceError(where="evaluation of the backbone", expected="finite numbers",
                          got="infinity or NaN, also with float32 weights",
                          todo="check the backbone's weights and the preprocessing (--mean, --std)")
    return min(math.sqrt(error / total), 1e30) if total else 0.0


def _gradients(outputs: Path) -> dict[str, np.ndarray]:
    """Flat gradients in float64, by trainable."""
    with np.load(outputs) as archive:
        return {name.removeprefix("acc_out."): archive[name].astype(np.float64).ravel()
                for name in archive.files if name.startswith("acc_out.")}


def _require_finite(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    broken = {name: np.isfinite(true).all() for name, (got, true) in pairs.items()
              if not (np.isfinite(got).all() and np.isfinite(true).all())}
    if not broken:
        return
    name = next(iter(broken))
    if all(broken.values()):
        raise InternalError(where=f"gradient of {name}", expected="finite numbers",
                            got="infinity or NaN with compressed saves only",
                            todo="report this; --bits 32 works around it")
    raise SourceError(where=f"gradient of {name}", expected="finite numbers",
                      got="infinity or NaN, also with nothing compressed",
                      todo="check the backbone's weights and the preprocessing (--mean, --std)")


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
