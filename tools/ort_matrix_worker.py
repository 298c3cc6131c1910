"""What ``ort_matrix`` asks inside one onnxruntime's environment: no torch, no onnx there.

One JSON request as the argument, one JSON answer as the last line of stdout. Requests: ``arenas``,
``interrupt``, ``exported`` (see the functions of these names).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from s2a_edge.run.installed_runtime import runtime_version
from s2a_edge.run.rehearsal import Request, rehearse
from s2a_edge.run.report import Progress
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.memory_plan import MemoryPlan

QUANTUM_BYTES = 256
_REPEAT = 5  # later runs find the arena as the first one left it
_RESOLUTION = 0.004  # of the limit


def arenas(request: dict[str, Any]) -> dict[str, Any]:
    """Per graph: the limit that training gives this version, and the smallest one that works."""
    version = runtime_version(ort.__version__)
    with Bundle.open(Path(request["bundle"])) as bundle:
        graphs = bundle.manifest.graphs
        plans = {graph.file: graph.plan for graph in (*graphs.train, graphs.eval)}
        plans[graphs.optimizer.file] = graphs.optimizer.plan
        found = {}
        for file, plan in plans.items():
            limit_bytes = plan.arena_limit_bytes(request["threads"], version)
            found[file] = _arena(bundle.file(file), plan, limit_bytes, request["threads"])
    return {"arenas": found}


def _arena(path: Path, plan: MemoryPlan, limit_bytes: int, threads: int) -> dict[str, Any]:
    at_limit = _trial(path, limit_bytes, plan.pool_bytes, threads)
    smallest = _smallest(path, plan, limit_bytes, threads, holds=at_limit["ok"])
    return {
        "plan_bytes": plan.arena_bytes,
        "limit_bytes": limit_bytes,
        "smallest_bytes": smallest,
        "holds": at_limit["ok"],
        "step_ms": statistics.median(at_limit["step_ms"]) if at_limit["ok"] else None,
    }


def _smallest(path: Path, plan: MemoryPlan, limit_bytes: int, threads: int, *, holds: bool) -> int:
    """Bisection to 0.4 % of the limit; the first look is just below it: plans are tight."""
    resolution = max(QUANTUM_BYTES, int(_RESOLUTION * limit_bytes))
    # Below half of the liveness peak a limit may be exceeded by what was taken before the run.
    low, high = max(plan.liveness_peak_bytes // 2, plan.pool_bytes), limit_bytes
    while not holds:
        low, high = high, high + max(high // 8, QUANTUM_BYTES)
        holds = _trial(path, high, plan.pool_bytes, threads)["ok"]
    middle = high - resolution
    while high - low > resolution:
        if _trial(path, middle, plan.pool_bytes, threads)["ok"]:
            high = middle
        else:
            low = middle
        middle = (low + high) // 2
    return high


def _trial(path: Path, limit_bytes: int, pool_bytes: int, threads: int) -> dict[str, Any]:
    """A run in a forked process: an arena's limit is for good."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = rehearse(Request(path, 0, limit_bytes - pool_bytes, threads, _REPEAT, None,
                                  pool_bytes=pool_bytes, own_weights=False))
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not text:
        raise SystemExit(f"{path.name} in {limit_bytes} bytes: exit status {status}")
    answer = json.loads(text)
    if not (answer["ok"] or answer["out_of_memory"]):
        raise SystemExit(f"{path.name}: {answer['error']}")
    return dict(answer)


def interrupt(request: dict[str, Any]) -> dict[str, Any]:
    """Train, and get SIGTERM after some steps, as a service manager would send it."""

    def on_progress(progress: Progress) -> None:
        if progress.phase == "train" and progress.step >= request["stop_after_steps"]:
            os.kill(os.getpid(), signal.SIGTERM)

    with Bundle.open(Path(request["bundle"])) as bundle:
        trainer = Trainer(
            bundle, threads=request["threads"], micro_batch=request["micro_batch"]
        )
        summary = trainer.fit(
            request["data"],
            val=request["val"],
            epochs=request["epochs"],
            lr=request["lr"],
            out=request["out"],
            on_progress=on_progress,
        )
    return {"stopped_by": summary.stopped_by, "steps": summary.steps}


def exported(request: dict[str, Any]) -> dict[str, Any]:
    """Run an exported model, one sample at a time, in a session with nothing set."""
    session = ort.InferenceSession(request["model"], providers=["CPUExecutionProvider"])
    with np.load(request["data"]) as archive:
        labels = archive["labels"]
        arrays = {port.name: archive[port.name] for port in session.get_inputs()}
    rows = [
        session.run(None, {name: array[i : i + 1] for name, array in arrays.items()})[0][0]
        for i in range(len(labels))
    ]
    logits = np.stack(rows)
    return {
        "top1": float(np.mean(logits.argmax(axis=1) == labels)),
        "logits": [[float(x) for x in row] for row in logits],
    }


_TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "arenas": arenas,
    "interrupt": interrupt,
    "exported": exported,
}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(_TASKS[asked["task"]](asked)))
