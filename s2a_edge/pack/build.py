"""``pack``: capture, compile, plan, emit, rehearse, bundle.

Everything is written to a temporary folder beside the result; the result appears only when the
rehearsal has shown that the plan holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save

from s2a_edge.native import find_library
from s2a_edge.pack import describe
from s2a_edge.pack.capture import Captured, open_source
from s2a_edge.pack.cheaper import measured_changes
from s2a_edge.pack.compile import Compiled, compile_backbone, native_step
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.fit_budget import with_arena
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.half.stand_in import evidence_of_twin, stand_in
from s2a_edge.pack.interface import task
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import gradient_error, output_error, rehearse, run_graph
from s2a_edge.pack.search.record import search_record
from s2a_edge.pack.search.search import Search
from s2a_edge.pack.training_steps import usable_threads
from s2a_edge.spec.budget import does_not_fit, requirement
from s2a_edge.spec.bundle_write import write_bundle
from s2a_edge.spec.errors import InternalError, StorageError
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
from s2a_edge.spec.text_inputs import TOKENIZER_NAME
from s2a_edge.spec.timeline import TIMELINE_SUFFIX
from s2a_edge.spec.tunable import TrainableGroup, tunable_groups
from s2a_edge.spec.units import format_bytes

_REPEAT = 3
# Rounds of choosing bits for a budget, and the share of it that may stay unused.
_MOST_FITS = 3
_UNUSED = 0.02
_PARAMETERS_NAME = "adapters.safetensors"
# Of gradients in float16 while rehearsing: training's first; where it overflows, less by this.
_FIRST_SCALE, _SMALLER_SCALE = 2.0**16, 16.0

Stage = Callable[[str, str], None]


@dataclass(frozen=True)
class PackReport:
    """What a pack made.

    Attributes:
        path: the bundle.
        manifest: its manifest, with plan and evidence.
        size_bytes: size of all its files.
        tunable: how much trains, by adapter, with the head and without it.
    """

    path: Path
    manifest: Manifest
    size_bytes: int
    tunable: tuple[TrainableGroup, ...]


def pack(source: str, out: Path, options: PackOptions,
         on_stage: Stage = lambda stage, detail: None) -> PackReport:
    """Compiles ``source`` into the training bundle ``out``.

    Args:
        source: a ``.onnx`` file, ``timm:NAME``, ``hf:FOLDER_OR_CONFIG`` or
            ``package.module:factory``.
        out: ``X.s2a`` for one uncompressed tar, any other name for a folder.
        options: the recipe.
        on_stage: told the name and a detail of each stage as it begins.

    Raises:
        SourceError: the backbone cannot be read or compiled.
        UnsupportedOperatorError: operators without a rule, before anything is done.
        BudgetError: it does not fit ``options.budget_bytes`` or ``options.saved_budget_bytes``.
        DataError: the calibration data cannot be used.
        InternalError: the rehearsal contradicts the plan.
        StorageError: the disk refuses; what existed at ``out`` is untouched.
    """
    _require_place(out)
    on_stage("capture", source)
    captured = open_source(source, input_shape=options.input_shape, weights=options.weights,
                           features=options.features, pool=options.pool,
                           seed=options.seed, loss=options.loss_output,
                           tokenizer=options.tokenizer, **options.preprocessing)
    return pack_captured(captured, out, options, on_stage)


def pack_captured(captured: Captured, out: Path, options: PackOptions,
                  on_stage: Stage = lambda stage, detail: None,
                  search: Search | None = None) -> PackReport:
    """As :func:`pack`, for a backbone that is captured already.

    With ``search``, one that was begun for the same recipe, perhaps with another budget.
    """
    for note in captured.notes:
        on_stage("note", note)
    # What a search decides is not known yet; all else is compiled before anything is written.
    compiled = compile_backbone(captured, options, on_stage) if options.auto is None else None
    staging = _staging_folder(out)
    try:
        if compiled is None:
            with tempfile.TemporaryDirectory(prefix="s2a-search-") as scratch:
                searching = search or Search(captured, options, Path(scratch), on_stage)
                manifest = _searched(staging, captured, options, searching, on_stage)
        else:
            manifest = _fitting(staging, captured, compiled, options, on_stage)
        if captured.tokenizer is not None:
            shutil.copyfile(captured.tokenizer, staging / TOKENIZER_NAME)
        on_stage("bundle", out.name)
        path = write_bundle(staging, manifest, out)
    except OSError as error:
        raise StorageError(where=str(error.filename or out), expected="room to write the bundle",
                           got=error.strerror or str(error),
                           todo="free space or choose another --out") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    size = path.stat().st_size if path.is_file() else sum(
        f.stat().st_size for f in path.iterdir())
    return PackReport(path, manifest, size, tunable_groups(manifest))


def _require_place(out: Path) -> None:
    """Refuses at once, and without writing, what would fail after minutes of work."""
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(where=str(parent), expected="a folder that can be written",
                           got="no folder" if not parent.is_dir() else "no permission",
                           todo="choose another --out")


def _staging_folder(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise StorageError(where=str(out.parent), expected="a folder that can be written",
                           got=error.strerror or str(error), todo="choose another --out"
                           ) from error


def _fitting(folder: Path, captured: Captured, compiled: Compiled, options: PackOptions,
             on_stage: Stage) -> Manifest:
    """Everything written to ``folder`` and rehearsed, within the budget if there is one.

    What the process needs beside the arena is known after a rehearsal only. With ``--bits auto``
    the arena then gets what the budget leaves, bits are chosen anew, and all is rehearsed again.

    Raises:
        BudgetError: if it does not fit.
    """
    manifest = _Files(folder, compiled, options, on_stage).manifest()
    budget_bytes = options.budget_bytes
    if budget_bytes is None:
        return manifest
    spare_bytes = 0
    for _ in range(_MOST_FITS if compiled.allocated is not None else 0):
        needed = requirement(manifest)
        left_bytes = needed.verdict(budget_bytes)
        enough = left_bytes.fits and left_bytes.headroom_bytes <= _UNUSED * budget_bytes
        if enough:
            break
        on_stage("fit", f"{format_bytes(needed.total_bytes)} into {format_bytes(budget_bytes)}")
        # Measured parts vary a little from one rehearsal to the next.
        spare_bytes += 0 if left_bytes.fits else left_bytes.missing_bytes // 8
        arena_bytes = needed.arena_bytes + budget_bytes - needed.total_bytes - spare_bytes
        changed = with_arena(compiled, arena_bytes, options)
        if changed is None:
            break
        compiled = changed
        manifest = _Files(folder, compiled, options, on_stage).manifest()
    needed = requirement(manifest)
    if not needed.verdict(budget_bytes).fits:
        changes = measured_changes(captured, compiled, options, manifest, folder, on_stage)
        raise does_not_fit(manifest, needed, budget_bytes, changes=changes)
    return manifest


def _searched(folder: Path, captured: Captured, options: PackOptions, search: Search,
              on_stage: Stage) -> Manifest:
    """The configuration that a search chooses, rehearsed within the budget in ``folder``.

    What it predicts too low is learned from the rehearsal, and the next best is taken.

    Raises:
        BudgetError: if none fits.
    """
    budget_bytes = options.budget_bytes
    assert budget_bytes is not None
    while True:
        choice = search.find(budget_bytes)
        candidate = choice.row.candidate
        on_stage("choose", candidate.flags)
        chosen = candidate.options(options)
        compiled = compile_backbone(captured, chosen, on_stage, search.allocated(candidate))
        manifest = _Files(folder, compiled, chosen, on_stage).manifest()
        needed = requirement(manifest, setting=search.setting)
        if needed.verdict(budget_bytes).fits:
            record = search_record(search, choice, budget_bytes)
            return replace(manifest, recipe=replace(manifest.recipe, search=record))
        if not choice.fits:
            changes = measured_changes(captured, compiled, chosen, manifest, folder, on_stage)
            raise does_not_fit(manifest, needed, budget_bytes, setting=search.setting,
                               changes=changes)
        on_stage("fit", f"{format_bytes(needed.total_bytes)}, not "
                 f"{format_bytes(choice.row.total_bytes)} as predicted: the next one")
        search.reject(choice.row, needed.total_bytes)
        for file in folder.iterdir():
            file.unlink()


class _Files:
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


def versions() -> dict[str, str]:
    """Versions of what took part in a pack."""
    found = {}
    for name in ("onnx", "onnx-ir", "onnxruntime", "onnxscript", "numpy", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
