"""The files of one bundle, before there is a bundle: emitted, planned, rehearsed in a folder.

Every graph runs in a process of its own inside the arena that is planned for it; a training step's
gradients are compared with those of the step that compresses nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save

from s2a_edge.native import find_library
from s2a_edge.pack import describe
from s2a_edge.pack.compile import Compiled, native_step
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.half.stand_in import evidence_of_twin, stand_in
from s2a_edge.pack.interface import task
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import gradient_error, output_error, rehearse, run_graph
from s2a_edge.pack.training_steps import press, usable_threads
from s2a_edge.pack.versions import versions
from s2a_edge.spec.errors import InternalError
from s2a_edge.spec.manifest import (
    BatchGraph,
    Graphs,
    Manifest,
    NativeGraph,
    OptimizerGraph,
    WeightEntry,
)
from s2a_edge.spec.memory_plan import Evidence, GradientError, MemoryPlan
from s2a_edge.spec.task_ports import GRADIENT_SCALE
from s2a_edge.spec.timeline import TIMELINE_SUFFIX

_REPEAT = 3
_PARAMETERS_NAME = "adapters.safetensors"
# Of gradients in float16 while rehearsing: training's first; where it overflows, less by this.
_FIRST_SCALE, _SMALLER_SCALE = 2.0**16, 16.0

Stage = Callable[[str, str], None]


class StagedFiles:
    """Emits, plans and rehearses the graphs of one bundle inside a staging folder."""

    def __init__(self, folder: Path, compiled: Compiled, options: PackOptions,
                 on_stage: Stage) -> None:
        self.folder = folder
        self.compiled = compiled
        self.options = options
        # A convolution takes working memory for each thread: plan and rehearsal must agree.
        self.threads = usable_threads(options)
        self.on_stage = on_stage
        on_stage("emit", f"{len(compiled.steps)} training graphs")
        entries = emit_weights(compiled.models, folder / WEIGHTS_NAME, compiled.coder.wholes)
        self.weights: dict[str, WeightEntry] = {e.name: e for e in entries}
        self.initial = {t.name: t.initial for t in compiled.trainables}
        self.samples = compiled.samples
        self.scratch: set[Path] = set()
        self.grad_scale = _FIRST_SCALE
        # Not save_file: its own error type would hide what the disk says.
        (folder / _PARAMETERS_NAME).write_bytes(save(self.initial))

    def manifest(self) -> Manifest:
        """Plans and rehearses everything, and describes it."""
        compiled = self.compiled
        train = tuple(self._train(batch) for batch in sorted(compiled.steps))
        plan, evidence = self._planned(compiled.evaluation, "eval.onnx")
        evaluation = BatchGraph("eval.onnx", compiled.eval_batch, plan, evidence)
        used = emit_model(compiled.inference, self.weights, self.folder / "infer.onnx",
                          skeleton=True)
        plan, evidence = self._planned(compiled.optimizer, "optimizer.onnx")
        graphs = Graphs(train, evaluation,
                        describe.infer_graph("infer.onnx", compiled.inference, used,
                                             task(self.options)),
                        OptimizerGraph("optimizer.onnx", plan, evidence))
        made = describe.manifest(compiled, self.options, graphs, tuple(self.weights.values()),
                                 versions(), self.samples.record(max(compiled.steps)),
                                 self._logits_error())
        for path in self.scratch:
            path.unlink(missing_ok=True)
        if made.compat.lacking:
            self.on_stage("note", f"for {made.compat.providers[0]}: {made.compat.lacking}")
        return made

    def _train(self, batch: int) -> BatchGraph:
        step = self.compiled.steps[batch]
        name = f"train_b{batch}.onnx"
        timeline = f"train_b{batch}{TIMELINE_SUFFIX}"
        press(step.model, self.options)
        plan, evidence = self._planned(step.model, name, self._compared(batch), timeline=timeline)
        return BatchGraph(name, batch, plan, evidence, self._native(batch), timeline)

    def _compared(self, batch: int) -> int | None:
        """Gradients are compared in the largest step."""
        return batch if batch == max(self.compiled.steps) else None

    def _native(self, batch: int) -> NativeGraph | None:
        """The same step with kernels in C, rehearsed like the other; needs them on this host.

        The bundle does without where the rehearsal contradicts its plan: the portable one holds.
        """
        kernels = find_library() if self.options.native else None
        step = native_step(self.compiled, batch, self.options) if kernels is not None else None
        if step is None:
            return None
        name = f"train_b{batch}.native.onnx"
        try:
            made = self._planned(step.model, name, self._compared(batch), kernels)
        except InternalError as error:
            (self.folder / name).unlink(missing_ok=True)
            self.on_stage("note", f"no step with kernels in C for batch {batch}: {error}")
            return None
        return NativeGraph(name, *made)

    def _planned(self, model: ir.Model, name: str, compared: int | None = None,
                 kernels: Path | None = None, timeline: str | None = None,
                 ) -> tuple[MemoryPlan, Evidence]:
        self.on_stage("plan", name)
        planned = plan_memory(model, threads=self.threads)
        plan = planned.plan
        if timeline is not None:
            (self.folder / timeline).write_bytes(describe.packed_timeline(planned))
        emit_model(model, self.weights, self.folder / name)
        runs, run_plan = self._runnable(model, name, plan)
        self.on_stage("rehearse", name)
        inputs, outputs = self.folder / "rehearsal.npz", self.folder / "outputs.npz"
        self._write_inputs(inputs, model, 0)
        evidence = rehearse(runs, run_plan, inputs, repeat=_REPEAT, outputs=outputs,
                            threads=self.threads, kernels=kernels)
        if runs.name != name:
            evidence = evidence_of_twin(evidence)
        if compared is not None:
            while self._overflows(outputs):
                self.grad_scale /= _SMALLER_SCALE
                self._write_inputs(inputs, model, 0)
                self._run(runs, inputs, outputs, kernels)
            error = self._gradient_error(runs, outputs, batch=compared, kernels=kernels)
            evidence = describe.with_gradient_error(evidence, error)
        inputs.unlink()
        outputs.unlink()
        return plan, evidence

    def _runnable(self, model: ir.Model, name: str, plan: MemoryPlan) -> tuple[Path, MemoryPlan]:
        """The file that runs on this host for the graph ``name``, and its plan."""
        twin = stand_in(model, self.compiled.coder.half)
        if twin is None:
            return self.folder / name, plan
        path = self._twin_path(name)
        self.scratch.add(path)
        emit_model(twin, self.weights, path, complete=True)
        return path, plan_memory(twin, threads=self.threads).plan

    def _twin_path(self, name: str) -> Path:
        return self.folder / f"{Path(name).stem}.twin.onnx"

    def _overflows(self, outputs: Path) -> bool:
        """Whether scaled gradients were too large for float16, and a smaller scale may help."""
        if self.options.precision != "fp16" or self.grad_scale <= 1:
            return False
        with np.load(outputs) as archive:
            return not all(np.isfinite(archive[name]).all() for name in archive.files)

    def _logits_error(self) -> float | None:
        """What coding the weights does to the evaluation graph's output, over all samples."""
        exact = self.compiled.uncoded_evaluation
        if exact is None:
            return None
        self.on_stage("weights", "effect of coding")
        folder = self.folder / "uncoded"
        folder.mkdir()
        emit_model(exact, {e.name: e for e in emit_weights([exact], folder / WEIGHTS_NAME)},
                   folder / "eval.onnx")
        twin = self._twin_path("eval.onnx")
        coded = twin if twin in self.scratch else self.folder / "eval.onnx"
        pairs = []
        for number in range(self.samples.batches(self.compiled.eval_batch)):
            inputs = self.folder / f"batch{number}.npz"
            self._write_inputs(inputs, exact, number)
            pair = folder / f"coded{number}.npz", folder / f"exact{number}.npz"
            self._run(coded, inputs, pair[0])
            self._run(folder / "eval.onnx", inputs, pair[1])
            pairs.append(pair)
            inputs.unlink()
        error = output_error(pairs)
        shutil.rmtree(folder)
        return error

    def _gradient_error(self, graph: Path, first: Path, *, batch: int, kernels: Path | None,
                        ) -> GradientError:
        """Over all batches of the samples; ``first`` holds the outputs of the rehearsed one.

        What the uncompressed step gives is kept for the other form of the step.
        """
        pairs: list[tuple[Path, Path]] = []
        for number in range(self.samples.batches(batch)):
            inputs, true = (self.folder / f"{kind}{number}.npz" for kind in ("batch", "exact"))
            self.scratch |= {inputs, true}
            if not inputs.exists():
                self._write_inputs(inputs, self.compiled.steps[batch].model, number)
            if not true.exists():
                self._run_reference(inputs, true)
            compressed = first
            if number:
                compressed = self.folder / f"{graph.stem}.outputs{number}.npz"
                self._run(graph, inputs, compressed, kernels)
            pairs.append((compressed, true))
        error = gradient_error(pairs)
        for compressed in {compressed for compressed, _ in pairs} - {first}:
            compressed.unlink()
        return error

    def _run_reference(self, inputs: Path, outputs: Path) -> None:
        """The uncompressed step, as many samples at a time as it takes; gradients add up."""
        reference = next(iter(self.compiled.references.values())).model
        exact, part = self.folder / "reference.onnx", self.folder / "part.npz"
        self.scratch |= {exact, part}
        if not exact.exists():
            # Of half the batch it has constants that no graph of the bundle has.
            emit_model(reference, self.weights, exact, complete=True)
        ports = {v.name or "": shape_of(v) for v in reference.graph.inputs}
        with np.load(inputs) as archive:
            feeds = {name: archive[name] for name in archive.files if name in ports}
        for rows in _parts(feeds, ports):
            given = {n: a if a.shape == ports[n] else a[rows] for n, a in feeds.items()}
            np.savez(part, **given)
            self._run(exact, part, outputs)
            with np.load(outputs) as made:
                feeds |= {n: made[n.replace("acc.", "acc_out.", 1)] for n in feeds
                          if n.startswith("acc.")}

    def _run(self, graph: Path, inputs: Path, outputs: Path, kernels: Path | None = None) -> None:
        run_graph(graph, inputs=inputs, arena_bytes=None, outputs=outputs, threads=self.threads,
                  kernels=kernels)

    def _write_inputs(self, path: Path, model: ir.Model, number: int) -> None:
        feeds = self.samples.feeds(model, self.initial, number)
        if GRADIENT_SCALE in feeds and self.options.precision == "fp16":
            feeds[GRADIENT_SCALE] = np.asarray(self.grad_scale, np.float32)
        np.savez(path, **feeds)  # type: ignore[arg-type]  # names are data


def _parts(feeds: Mapping[str, np.ndarray], ports: Mapping[str, tuple[int, ...]],
           ) -> list[slice]:
    """Rows of ``feeds`` that a graph with inputs of these shapes takes, one run after another."""
    sizes = {(len(a), ports[n][0]) for n, a in feeds.items() if a.shape != ports[n]}
    if not sizes:
        return [slice(None)]
    ((whole, part),) = sizes
    return [slice(first, first + part) for first in range(0, whole, part)]
