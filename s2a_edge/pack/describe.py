"""The manifest of what a pack made."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.adapters.workbench import PARAMETER_PREFIX
from s2a_edge.pack.blocks import Block
from s2a_edge.pack.compile import Allocated, Compiled
from s2a_edge.pack.cuda_kernels import without_kernel
from s2a_edge.pack.graph import dtype_of, module_of, shape_of
from s2a_edge.pack.interface import input_specs, task
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan.planner import PlanResult
from s2a_edge.pack.saving import SavedValue as Saved
from s2a_edge.spec.frozen_weights import FrozenWeights
from s2a_edge.spec.manifest import (
    FORMAT,
    FORMAT_VERSION,
    AllocationRecord,
    Calibration,
    Compat,
    Graphs,
    InferGraph,
    Manifest,
    OutputSpec,
    Precision,
    Recipe,
    SavedValue,
    Task,
    Trainable,
    TunedBlock,
    Tuning,
    WeightEntry,
)
from s2a_edge.spec.memory_plan import Evidence, GradientError
from s2a_edge.spec.timeline import Timeline, pack_timeline
from s2a_edge.spec.tunable import adapter_of

ONNXRUNTIME_MIN = "1.19"


def with_gradient_error(evidence: Evidence, error: GradientError) -> Evidence:
    """The same evidence with a gradient error."""
    return replace(evidence, gradient_error=error)


def packed_timeline(planned: PlanResult) -> bytes:
    """The buffers of a plan, as the bundle keeps them for drawings."""
    buffers, nodes = planned.buffers, planned.traffic.nodes
    return pack_timeline(Timeline(
        "s2a-timeline", tuple(node.name for node in nodes), tuple(b.name for b in buffers),
        tuple(b.kind for b in buffers), tuple(b.size_bytes for b in buffers),
        tuple(b.start for b in buffers), tuple(b.end for b in buffers)))


def manifest(compiled: Compiled, options: PackOptions, graphs: Graphs,
             weights: tuple[WeightEntry, ...], versions: dict[str, str],
             calibration: Calibration, logits_error: float | None = None) -> Manifest:
    """All of ``manifest.json``."""
    backbone = compiled.backbone
    saved = compiled.steps[max(compiled.steps)].saved
    recomputed = any(s.codec == "recompute" and s.kind == "probability" for s in saved)
    return Manifest(
        format=FORMAT, format_version=FORMAT_VERSION,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool_version=_tool_version(), versions=versions, source=backbone.source,
        inputs=input_specs(backbone),
        preprocessing=backbone.preprocessing,
        task=task(options),
        recipe=Recipe(_adapters(options), options.bits,
                      "recompute" if recomputed else "store", options.optimizer,  # type: ignore[arg-type]  # checked by PackOptions
                      options.effective_batch, tuple(sorted(options.micro_batches)),
                      options.device, options.seed, options.recompute,
                      options.precision, options.emulate),
        trainables=tuple(Trainable(t.name, tuple(t.initial.shape), t.kind, t.module, t.decay,  # type: ignore[arg-type]  # kinds of adapt are the manifest's
                                   t.initial.nbytes) for t in compiled.trainables),
        saved=tuple(_saved(s, compiled.allocated) for s in saved),
        weights=weights, graphs=graphs, compat=_compat(compiled),
        precision=precision(compiled, options, calibration),
        tuning=tuning(compiled.adapted, options),
        frozen=FrozenWeights(compiled.coder.storage, logits_error, compiled.coder.record()))


def _compat(compiled: Compiled) -> Compat:
    """CUDA is named if every node of every graph has a kernel there, in all versions of boards.

    Half precision has kernels of its own there alone, and plans that hold.
    """
    missing = without_kernel([*(step.model for step in compiled.steps.values()),
                              compiled.evaluation, compiled.optimizer])
    lacking = ""
    if missing:
        node, without = max(missing.items(), key=lambda item: len(item[1]))
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        lacking = f"no CUDA kernel in onnxruntime {', '.join(without)} for {node}{more}"
    if compiled.coder.half is not None and not compiled.coder.emulate:
        return Compat(ONNXRUNTIME_MIN, ("cuda",), lacking)
    return Compat(ONNXRUNTIME_MIN, ("cpu",) if missing else ("cpu", "cuda"), lacking)


def _saved(saved: Saved, allocated: Allocated | None) -> SavedValue:
    why = allocated.allocation.why.get(saved.key) if allocated is not None else None
    sensitivity = {} if why is None else {str(n): error for n, error in why.sensitivity.items()}
    return SavedValue(saved.value, saved.module, saved.kind, saved.codec, saved.bits, saved.shape,
                      saved.stored_bytes, sensitivity, "" if why is None else why.reason)


def precision(compiled: Compiled, options: PackOptions, calibration: Calibration) -> Precision:
    """How bits were chosen."""
    allocated = compiled.allocated
    if allocated is None:
        return Precision("fixed", calibration)
    made = allocated.allocation
    return Precision("auto", calibration, AllocationRecord(
        options.seed, allocated.measured.samples, made.capacity_bytes, made.stored_bytes,
        made.squared_error ** 0.5, made.bound ** 0.5, allocated.measured.seconds))


def tuning(adapted: Adapted, options: PackOptions) -> Tuning:
    """What trains, with all blocks of the backbone."""
    places = {(adapter_of(t.kind, options.adapters), t.module) for t in adapted.trainables}
    used = {adapter for adapter, _ in places}
    blocks = tuple(TunedBlock(b.name, shape_of(b.output)[1:], b.residual,
                              _adapters_of(b, places, options)) for b in adapted.blocks)
    return Tuning(rank=options.rank if used & {"lrp", "lsb", "lora"} else None,
                  reduce=options.reduce if "lsb" in used else None,
                  alpha=options.alpha if "lora" in used else None, blocks=options.blocks,
                  target_modules=options.target_modules,
                  frozen_parameters=adapted.frozen_parameters, found=blocks)


def _adapters_of(block: Block, places: set[tuple[str, str]], options: PackOptions,
                 ) -> tuple[str, ...]:
    """The adapters of one block: at its end, or at modules inside it."""
    modules = {block.name, *map(module_of, block.nodes)}
    return tuple(a for a in options.adapters if a != "head"
                 and any((a, place) in places for m in modules for place in (m, f"{m}.{a}")))


def infer_graph(file: str, model: ir.Model, used: tuple[str, ...], task: Task) -> InferGraph:
    """What the skeleton for export takes and gives; its ports are said where they vary."""
    if task.loss != "output":
        return InferGraph(file, used)
    inputs = tuple(v.name or "" for v in model.graph.inputs
                   if not (v.name or "").startswith(PARAMETER_PREFIX))
    outputs = tuple(OutputSpec(v.name or "", str(dtype_of(v).numpy()), shape_of(v))  # type: ignore[arg-type]  # refused by the manifest's own check
                    for v in model.graph.outputs)
    return InferGraph(file, used, inputs, outputs)


def _adapters(options: PackOptions) -> tuple[str, ...]:
    """What trains; the head always does, where there is one."""
    if options.loss == "output":
        return tuple(a for a in options.adapters if a != "head")
    return tuple(dict.fromkeys((*options.adapters, "head")))


def _tool_version() -> str:
    try:
        return version("s2a-edge")
    except PackageNotFoundError:
        return "0+checkout"
