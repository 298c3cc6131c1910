"""Measures the smallest arena under which ONNX Runtime runs a graph, beside what the plan says.

Each trial is a process of its own (forked, so that importing is paid once): an arena's limit is
for good. Inputs are random, outputs preallocated, as in training. Exact to 256 bytes unless
--resolution says otherwise; large graphs are quicker with, say, 0.005 of the plan.

Run: python tools/measure_arena.py GRAPH.onnx [GRAPH.onnx ...] [--threads 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.shape_inference import infer_outputs
from s2a_edge.run.installed_runtime import runtime_name, runtime_version
from s2a_edge.run.rehearsal import Request, rehearse
from s2a_edge.spec.errors import S2AError

QUANTUM_BYTES = 256
REPEAT = 2  # a second run finds the arena as the first one left it
_RAN, _FULL, _BROKE = 0, 3, 4


@dataclass(frozen=True)
class Comparison:
    """One graph: the plan and the smallest arena it was seen to run in; sizes in bytes."""

    graph: str
    threads: int
    lower_bound_bytes: int
    liveness_peak_bytes: int
    plan_arena_bytes: int
    measured_arena_bytes: int
    plan_over_measured: float
    measured_over_liveness: float


class TrialError(Exception):
    """A run failed for another reason than the limit."""


def load_shaped(path: Path) -> ir.Model:
    """The graph with the shapes of all values, which emitted files leave out."""
    model = ir.load(path)
    for node in model.graph:
        if any(v.name and (v.shape is None or v.dtype is None) for v in node.outputs):
            infer_outputs(node)
    return model


def runs_within(path: Path, arena_bytes: int, threads: int, pool_bytes: int = 0) -> bool:
    """Whether the graph runs under this limit of arena and pool, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_trial(path, arena_bytes, threads, pool_bytes, writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (_RAN, _FULL):
        raise TrialError(f"{path.name}: {message or f'exit status {status}'}")
    return status == _RAN


def _trial(path: Path, arena_bytes: int, threads: int, pool_bytes: int, writer: int) -> int:
    answer = rehearse(Request(path, 0, arena_bytes - pool_bytes, threads, REPEAT, None,
                              pool_bytes=pool_bytes))
    if answer["ok"]:
        return _RAN
    os.write(writer, str(answer["error"]).encode()[:4000])
    return _FULL if answer["out_of_memory"] else _BROKE


def smallest_arena_bytes(path: Path, threads: int, *, start_bytes: int, floor_bytes: int,
                         resolution_bytes: int, pool_bytes: int = 0) -> int:
    """Bisection between ``floor_bytes`` (nothing smaller is tried) and a working size."""
    failing, working = floor_bytes // QUANTUM_BYTES - 1, -(-start_bytes // QUANTUM_BYTES)
    while not runs_within(path, working * QUANTUM_BYTES, threads, pool_bytes):
        failing, working = working, working + max(working // 8, 1)
    while (working - failing) * QUANTUM_BYTES > max(resolution_bytes, QUANTUM_BYTES):
        middle = (failing + working) // 2
        if runs_within(path, middle * QUANTUM_BYTES, threads, pool_bytes):
            working = middle
        else:
            failing = middle
    return working * QUANTUM_BYTES


def compare(path: Path, threads: int, resolution: float) -> Comparison:
    """Plans and measures one graph."""
    plan = plan_memory(load_shaped(path), threads=threads,
                       version=runtime_version(runtime_name())).plan
    measured = smallest_arena_bytes(
        path, threads, start_bytes=plan.arena_bytes,
        # Below this something else would be measured: a limit that the session's own constants
        # exceed is no limit any more.
        floor_bytes=max(plan.liveness_peak_bytes // 2, plan.pool_bytes) + QUANTUM_BYTES,
        resolution_bytes=int(resolution * plan.arena_bytes), pool_bytes=plan.pool_bytes)
    return Comparison(
        str(path), threads, plan.lower_bound_bytes, plan.liveness_peak_bytes, plan.arena_bytes,
        measured, round(plan.arena_bytes / measured, 4),
        round(measured / max(plan.liveness_peak_bytes, 1), 4))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("graphs", nargs="+", type=Path, metavar="GRAPH.onnx")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads")
    parser.add_argument("--resolution", type=float, default=0.0,
                        help="stop when the bracket is this share of the plan")
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")
    args = parser.parse_args()
    try:
        rows = [compare(path, args.threads, args.resolution) for path in args.graphs]
    except (S2AError, TrialError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    print(f"{'liveness':>13} {'bound':>13} {'plan':>13} {'measured':>13} plan/meas meas/live graph")
    for row in rows:
        print(f"{row.liveness_peak_bytes:13,} {row.lower_bound_bytes:13,} "
              f"{row.plan_arena_bytes:13,} {row.measured_arena_bytes:13,} "
              f"{row.plan_over_measured:9.4f} {row.measured_over_liveness:9.4f} {row.graph}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
