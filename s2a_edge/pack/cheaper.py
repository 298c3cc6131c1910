"""What would make a bundle fit its budget: other recipes, compiled and measured, cheapest first.

Each is one change of the recipe that was asked for. Its training step is compiled, planned and run
once in a process of its own within its planned arena; the rest of the requirement is that of the
bundle that did not fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np

from s2a_edge.pack.capture import Captured
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.emit import emit_model, emit_weights
from s2a_edge.pack.half.stand_in import evidence_of_twin, stand_in
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import rehearse
from s2a_edge.pack.training_steps import usable_threads
from s2a_edge.spec.changes import Change, cheapest
from s2a_edge.spec.errors import S2AError
from s2a_edge.spec.frozen_weights import FrozenStorage
from s2a_edge.spec.manifest import BatchGraph, Manifest, WeightEntry
from s2a_edge.spec.requirement import LineKind, requirement
from s2a_edge.spec.units import format_bytes

Stage = Callable[[str, str], None]

_FEWEST_BITS = get_args(FrozenStorage)[-1]
_FEWER_BITS = {32: 8, 16: 8, 8: 4, 4: 2, 3: 2}


def measured_changes(captured: Captured, compiled: Compiled, options: PackOptions,
                     manifest: Manifest, folder: Path, on_stage: Stage) -> tuple[Change, ...]:
    """At most three changes of ``options`` with their measured effects.

    Args:
        captured: the source.
        compiled: what was made of it with ``options``.
        options: of the pack that does not fit; with a budget.
        manifest: of the bundle that does not fit.
        folder: for files, emptied by the caller.
        on_stage: told of each.

    Returns:
        Nothing where the parts that no recipe changes are too large already.
    """
    assert options.budget_bytes is not None
    budget_bytes = options.budget_bytes
    present = requirement(manifest)
    movable = (LineKind.ARENA, LineKind.INPUTS) if options.frozen == _FEWEST_BITS else (
        LineKind.ARENA, LineKind.INPUTS, LineKind.WEIGHTS)
    if present.total_bytes - present.of_kind(*movable) >= budget_bytes:
        return ()
    graphs = {graph.batch: graph for graph in manifest.graphs.train}
    before_ms = _sample_ms(graphs[present.micro_batch])
    changes = []
    for flags, changed in _variants(options, len(compiled.adapted.blocks)):
        on_stage("try", flags)
        try:
            made = compile_backbone(captured, changed, _silent)
            graph, weights = _rehearsed(made, changed, folder)
        except S2AError as error:  # this one cannot be had; others may
            on_stage("note", f"{flags}: {error}")
            continue
        graphs_then = dataclasses.replace(manifest.graphs, train=(graph,),
                                          eval=_evaluation(manifest.graphs.eval, made, changed))
        needed = requirement(dataclasses.replace(manifest, graphs=graphs_then, weights=weights))
        change = Change(flags, "pack", needed.total_bytes,
                        present.total_bytes - needed.total_bytes, _sample_ms(graph) / before_ms,
                        needed.verdict(budget_bytes).fits, "measured at pack time")
        on_stage("try", f"{flags}: {format_bytes(needed.total_bytes)}")
        changes.append(change)
    return cheapest(changes)


def _variants(options: PackOptions, blocks: int) -> Iterator[tuple[str, PackOptions]]:
    """Single changes that may help, as flags and as options of one micro-batch."""
    largest = max(options.micro_batches)
    here = dataclasses.replace(options, micro_batches=(largest,), budget_bytes=None,
                               saved_budget_bytes=None, native=False)
    for batch in dict.fromkeys((largest // 2, largest // 4, 1)):
        if 1 <= batch < largest and not (options.loss == "output"
                                         and options.effective_batch % batch):
            yield f"--micro-batch {batch}", dataclasses.replace(here, micro_batches=(batch,))
    fewer = 2 if options.bits == "auto" else _FEWER_BITS.get(options.bits)
    if fewer is not None:
        yield f"--bits {fewer}", dataclasses.replace(here, bits=fewer)
    storages = get_args(FrozenStorage)
    for storage in storages[storages.index(options.frozen) + 1:]:
        if storage == _FEWEST_BITS and options.precision != "fp32":
            continue
        yield f"--frozen {storage}", dataclasses.replace(here, frozen=storage)
    if options.blocks == "all" and blocks >= 2:
        half = f"last:{blocks // 2}"
        yield f"--blocks {half}", dataclasses.replace(here, blocks=half)


def _evaluation(before: BatchGraph, compiled: Compiled, options: PackOptions) -> BatchGraph:
    """The evaluation graph, planned; its session takes for each node what it took before."""
    plan = plan_memory(compiled.evaluation, threads=usable_threads(options)).plan
    seen = before.evidence
    session_bytes = seen.session_bytes * plan.node_count // max(1, before.plan.node_count)
    return dataclasses.replace(before, batch=compiled.eval_batch, plan=plan,
                               evidence=dataclasses.replace(seen, session_bytes=session_bytes))


def _rehearsed(compiled: Compiled, options: PackOptions, folder: Path,
               ) -> tuple[BatchGraph, tuple[WeightEntry, ...]]:
    """The training graph, planned and run, and the table of its weights."""
    ((batch, step),) = compiled.steps.items()
    entries = emit_weights(compiled.models, folder / "weights.bin", compiled.coder.wholes)
    threads = usable_threads(options)
    plan = plan_memory(step.model, threads=threads).plan
    path = folder / f"train_b{batch}.onnx"
    emit_model(step.model, {entry.name: entry for entry in entries}, path)
    initial = {t.name: t.initial for t in compiled.trainables}
    feeds = compiled.samples.feeds(step.model, initial, 0)
    np.savez(folder / "inputs.npz", **feeds)  # type: ignore[arg-type]  # names are data
    twin = stand_in(step.model, compiled.coder.half)
    if twin is None:
        evidence = rehearse(path, plan, folder / "inputs.npz", repeat=1, threads=threads)
    else:
        emit_model(twin, {entry.name: entry for entry in entries}, path, complete=True)
        runs = plan_memory(twin, threads=threads).plan
        evidence = evidence_of_twin(
            rehearse(path, runs, folder / "inputs.npz", repeat=1, threads=threads))
    return BatchGraph(path.name, batch, plan, evidence), entries


def _sample_ms(graph: BatchGraph) -> float:
    """Time of one sample in a step; never 0."""
    return max(graph.evidence.step_ms, 1e-9) / graph.batch


def _silent(stage: str, detail: str) -> None:
    """Stages of a variant are not those of the pack."""
