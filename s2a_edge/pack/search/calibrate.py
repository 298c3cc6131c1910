"""A few runs on this host: times of operators, what sessions take, errors of gradients.

One configuration is rehearsed with all its graphs. From it, one thing is changed at a time - how
values are saved, how weights are stored, the micro-batch - so that every kind of operator that a
candidate may have is timed in some run. Each run is a process of the board's runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from s2a_edge.pack import describe
from s2a_edge.pack.capture import Captured
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.interface import task
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import Rehearsed, run_graph
from s2a_edge.pack.search.candidates import Candidate
from s2a_edge.pack.search.cost import Costs, TimedNode, fit_costs
from s2a_edge.pack.search.drafts import Drafts
from s2a_edge.pack.search.memory import Memory, fit_sessions
from s2a_edge.pack.search.work import GraphWork, Work, kind_of, node_work
from s2a_edge.pack.training_steps import usable_threads
from s2a_edge.spec.machine import machine
from s2a_edge.spec.manifest import BatchGraph, Graphs, Manifest, OptimizerGraph, WeightEntry
from s2a_edge.spec.memory_plan import Evidence, MemoryPlan
from s2a_edge.spec.requirement import Setting

Stage = Callable[[str, str], None]
Squares = Mapping[str, float]

_REPEAT = 3
_GRADIENT = "acc_out."


@dataclass(frozen=True)
class TimedRun:
    """One run of a calibration.

    Attributes:
        name: what was run.
        ms: the least time of a run.
        nodes: each with its work and its least time; empty where nodes were not timed.
    """

    name: str
    ms: float
    nodes: tuple[TimedNode, ...] = field(repr=False)

    @property
    def work(self) -> GraphWork:
        """Of all its nodes, by kind."""
        found: dict[str, Work] = {}
        for node in self.nodes:
            found[node.kind] = found.get(node.kind, Work()) + node.work
        return found


@dataclass
class Calibration:
    """What the runs gave.

    Attributes:
        memory: predicts requirements.
        runs: every timed run.
        norms: squared norm of each trainable's exact gradient.
        errors: by the signature of a draft, the squared error of each trainable's gradient.
        sessions: nodes of graphs, and what their sessions took.
        base_bytes: the most that a process took before its session.
    """

    memory: Memory
    runs: list[TimedRun]
    norms: Squares
    errors: dict[object, Squares]
    sessions: list[tuple[int, int]]
    base_bytes: int

    def costs(self) -> Costs:
        """The time model that fits all runs."""
        timed = [run for run in self.runs if run.nodes]
        return fit_costs([node for run in timed for node in run.nodes],
                         [(run.ms, sum(n.ms for n in run.nodes), len(run.nodes))
                          for run in timed])


class Runs(Protocol):
    """Whoever makes the runs of a calibration."""

    def start(self, base: Candidate, setting: Setting) -> Calibration:
        """Rehearses ``base`` with all its graphs, and runs its uncompressed step."""
        ...

    def run(self, calibration: Calibration, candidate: Candidate, *, sessions: bool = False,
            ) -> None:
        """Adds to ``calibration`` what running the step of ``candidate`` tells."""
        ...


class Calibrator:
    """Makes the runs.

    Args:
        captured: the source.
        drafts: of the same.
        folder: an empty folder for files.
        kernels: library of the kernels in C; None: steps without.
        times: nodes are timed.
        on_stage: told of each run.
    """

    def __init__(self, captured: Captured, drafts: Drafts, folder: Path, *, kernels: Path | None,
                 times: bool, on_stage: Stage) -> None:
        self._captured, self._drafts, self._folder = captured, drafts, folder
        self._kernels, self._times, self._on_stage = kernels, times, on_stage
        self._threads = usable_threads(drafts.base)
        self._initial: dict[str, np.ndarray] = {}
        self._written: dict[str, dict[str, WeightEntry]] = {}

    def start(self, base: Candidate, setting: Setting) -> Calibration:
        """Rehearses ``base`` with all its graphs, and runs its uncompressed step."""
        self._on_stage("calibrate", f"{base.flags}: all graphs")
        options = base.options(self._drafts.base)
        compiled = compile_backbone(self._captured, options, _silent,
                                    self._drafts.allocated(base))
        self._initial = {t.name: t.initial for t in compiled.trainables}
        self._samples = compiled.samples
        manifest, seen = self._rehearsed(compiled, options)
        bases = [s.runtime_base_bytes for s in seen]
        sessions = [(plan.node_count, run.session_bytes)
                    for plan, run in zip(_plans(manifest), seen, strict=True)]
        memory = Memory(manifest, fit_sessions(sessions), max(bases) - min(bases), setting)
        (reference,) = compiled.references.values()
        exact = self._gradients(reference.model, "reference")
        self._exact = exact
        norms = {name: float(np.square(g).sum()) for name, g in exact.items()}
        calibration = Calibration(memory, [], norms, {}, sessions, max(bases))
        self.run(calibration, base)
        return calibration

    def run(self, calibration: Calibration, candidate: Candidate, *, sessions: bool = False,
            ) -> None:
        """Runs the step of ``candidate``: its times, and where its batch is the first one's, the
        error of its gradients; with ``sessions`` also what a session of it takes.
        """
        self._on_stage("calibrate", candidate.flags)
        steps = self._drafts.steps(candidate)
        model = steps.timed.model
        kernels = self._kernels if steps.native is not None else None
        models = (steps.portable.model, model, *steps.others)
        path = self._emitted(model, models, candidate.frozen, steps.coder.wholes)
        inputs, outputs = self._inputs(model), self._folder / "outputs.npz"
        profile = self._folder / "profile" if self._times else None
        seen = run_graph(path, inputs=inputs, arena_bytes=None, threads=self._threads,
                         repeat=_REPEAT, outputs=outputs, kernels=kernels, profile=profile)
        calibration.runs.append(TimedRun(candidate.flags, min(seen.step_ms),
                                         _timed_nodes(model, seen)))
        if candidate.micro_batch == calibration.memory.manifest.graphs.train[0].batch:
            made = _gradients(outputs)
            calibration.errors[self._drafts.draft(candidate).signature] = {
                name: float(np.square(made[name] - g).sum()) for name, g in self._exact.items()}
        if sessions:
            self._add_session(calibration, candidate, models)

    def _add_session(self, calibration: Calibration, candidate: Candidate,
                     models: Sequence[ir.Model]) -> None:
        """One more point of what sessions take; the profiler of a timed run would be in it."""
        portable = models[0]
        path = self._emitted(portable, models, candidate.frozen, frozenset())
        seen = run_graph(path, inputs=self._inputs(portable), arena_bytes=None,
                         threads=self._threads)
        memory, known_bytes = calibration.memory, calibration.base_bytes
        calibration.sessions.append((len(portable.graph), seen.session_bytes))
        calibration.memory = replace(
            memory, sessions=fit_sessions(calibration.sessions),
            margin_bytes=max(memory.margin_bytes, seen.runtime_base_bytes - known_bytes))

    def _rehearsed(self, compiled: Compiled, options: PackOptions,
                   ) -> tuple[Manifest, list[Rehearsed]]:
        """A manifest of the base configuration: plans, and what one run of each graph took."""
        ((batch, step),) = compiled.steps.items()
        named = {f"train_b{batch}.onnx": step.model, "eval.onnx": compiled.evaluation,
                 "optimizer.onnx": compiled.optimizer}
        entries = emit_weights(compiled.models, self._folder / WEIGHTS_NAME,
                               compiled.coder.wholes)
        known = self._known = {e.name: e for e in entries}
        made: list[tuple[MemoryPlan, Evidence]] = []
        runs = []
        for name, model in named.items():
            plan = plan_memory(model, threads=self._threads).plan
            emit_model(model, known, self._folder / name)
            run = run_graph(self._folder / name, inputs=self._inputs(model),
                            arena_bytes=plan.arena_bytes, pool_bytes=plan.pool_bytes,
                            threads=self._threads, repeat=2)
            runs.append(run)
            made.append((plan, _evidence(run)))
        train, evaluation, update = made
        graphs = Graphs(
            (BatchGraph(f"train_b{batch}.onnx", batch, *train),),
            BatchGraph("eval.onnx", compiled.eval_batch, *evaluation),
            describe.infer_graph("infer.onnx", compiled.inference, (), task(options)),
            OptimizerGraph("optimizer.onnx", *update))
        return describe.manifest(compiled, options, graphs, entries, {},
                                 self._samples.record(batch)), runs

    def _gradients(self, model: ir.Model, name: str) -> dict[str, np.ndarray]:
        """What one run of a step with the base's weights gives."""
        path = self._folder / f"{name}.onnx"
        emit_model(model, self._known, path, complete=True)
        outputs = self._folder / "outputs.npz"
        run_graph(path, inputs=self._inputs(model), arena_bytes=None, threads=self._threads,
                  outputs=outputs)
        path.unlink()
        return _gradients(outputs)

    def _emitted(self, model: ir.Model, models: Sequence[ir.Model], storage: str,
                 wholes: frozenset[str]) -> Path:
        """The file of one graph; weights are written once for each storage."""
        folder = self._folder / storage
        if storage not in self._written:
            folder.mkdir(exist_ok=True)
            entries = emit_weights(models, folder / WEIGHTS_NAME, wholes)
            self._written[storage] = {e.name: e for e in entries}
        path = folder / "step.onnx"
        emit_model(model, self._written[storage], path, complete=True)
        return path

    def _inputs(self, model: ir.Model) -> Path:
        path = self._folder / "inputs.npz"
        feeds = self._samples.feeds(model, self._initial, 0)
        np.savez(path, **feeds)  # type: ignore[arg-type]  # names are data
        return path


def _plans(manifest: Manifest) -> tuple[MemoryPlan, ...]:
    graphs = manifest.graphs
    return graphs.train[0].plan, graphs.eval.plan, graphs.optimizer.plan


def _evidence(run: Rehearsed) -> Evidence:
    return Evidence(machine(), run.onnxruntime, 0, run.process_peak_bytes, run.runtime_base_bytes,
                    run.session_bytes, min(run.step_ms), len(run.step_ms), None)


def _timed_nodes(model: ir.Model, seen: Rehearsed) -> tuple[TimedNode, ...]:
    return tuple(TimedNode(kind_of(node), node_work(node), seen.node_ms[node.name or ""])
                 for node in model.graph if node.name in seen.node_ms)


def _gradients(outputs: Path) -> dict[str, np.ndarray]:
    with np.load(outputs) as archive:
        return {name.removeprefix(_GRADIENT): archive[name].astype(np.float64)
                for name in archive.files if name.startswith(_GRADIENT)}


def _silent(stage: str, detail: str) -> None:
    """Stages of a candidate are not those of the pack."""


__all__ = ["Calibration", "Calibrator", "Runs", "TimedRun"]
