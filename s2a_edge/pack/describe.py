"""The manifest of what a pack made."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import onnx_ir as ir

from s2a_edge.pack.capture import Backbone
from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.options import PackOptions
from s2a_edge.spec.manifest import (
    FORMAT,
    FORMAT_VERSION,
    Calibration,
    Compat,
    Graphs,
    InputSpec,
    Manifest,
    Precision,
    Recipe,
    SavedValue,
    Task,
    Trainable,
    WeightEntry,
)
from s2a_edge.spec.memory_plan import Evidence, GradientError

ONNXRUNTIME_MIN = "1.19"
_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}


def with_gradient_error(evidence: Evidence, error: GradientError) -> Evidence:
    """The same evidence with a gradient error."""
    return replace(evidence, gradient_error=error)


def manifest(compiled: Compiled, options: PackOptions, graphs: Graphs,
             weights: tuple[WeightEntry, ...], versions: dict[str, str],
             calibration: Calibration) -> Manifest:
    """All of ``manifest.json``."""
    backbone = compiled.backbone
    saved = compiled.steps[max(compiled.steps)].saved
    recomputed = any(s.codec == "recompute" for s in saved)
    return Manifest(
        format=FORMAT, format_version=FORMAT_VERSION,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool_version=_tool_version(), versions=versions, source=backbone.source,
        inputs=input_specs(backbone),
        preprocessing=backbone.preprocessing,
        task=task(options),
        recipe=Recipe(tuple(dict.fromkeys((*options.adapters, "head"))), options.bits,
                      "recompute" if recomputed else "store", options.optimizer,  # type: ignore[arg-type]  # checked by PackOptions
                      options.effective_batch, tuple(sorted(options.micro_batches)),
                      options.device, options.seed),
        trainables=tuple(Trainable(t.name, tuple(t.initial.shape), t.kind, t.module, t.decay,  # type: ignore[arg-type]  # kinds of adapt are the manifest's
                                   t.initial.nbytes) for t in compiled.trainables),
        saved=tuple(SavedValue(s.value, s.module, s.kind, s.codec, s.bits, s.shape,
                               s.stored_bytes) for s in saved),
        weights=weights, graphs=graphs, compat=Compat(ONNXRUNTIME_MIN, ("cpu", "cuda")),
        precision=Precision("fixed", calibration))


def input_specs(backbone: Backbone) -> tuple[InputSpec, ...]:
    """The data inputs, without the batch."""
    return tuple(_input(v, backbone.preprocessing is not None) for v in backbone.data_inputs)


def task(options: PackOptions) -> Task:
    """What is learned."""
    return Task(options.loss, options.class_count, options.labels)


def _input(value: ir.Value, is_image: bool) -> InputSpec:
    shape = shape_of(value)[1:]
    kind = "image" if is_image and len(shape) == 3 else "tensor"
    return InputSpec(value.name or "", _DTYPES[dtype_of(value)], shape, kind)  # type: ignore[arg-type]  # values of _DTYPES


def _tool_version() -> str:
    try:
        return version("s2a-edge")
    except PackageNotFoundError:
        return "0+checkout"
