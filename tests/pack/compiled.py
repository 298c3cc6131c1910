"""Compiled backbones for tests (each made once), and running their graphs in this process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from s2a_edge.pack.adapt import Adapted, Tuning, adapt
from s2a_edge.pack.capture import Captured, capture
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.normalize import normalize
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.regroup import slices_to_splits

LABELS = ("a", "b", "c", "d", "e")
Arrays = dict[str, np.ndarray]


@functools.cache
def captured(name: str, **options: Any) -> Captured:
    """A factory of ``tests.pack.models`` by its name, any other SOURCE as it is."""
    source = name if ":" in name or name.endswith(".onnx") else f"tests.pack.models:{name}"
    return capture(source, **options)


def compiled(name: str, *, bits: int = 4, attention: str = "store", **options: Any) -> Compiled:
    """All graphs of ``name``, made once; micro-batch 4 unless said otherwise."""
    return _compiled(name, bits=bits, attention=attention, **options)


@functools.cache
def _compiled(name: str, **options: Any) -> Compiled:
    return compile_captured(captured(name), **options)


def compile_captured(source: Captured, **options: Any) -> Compiled:
    given = {"labels": LABELS, "micro_batches": (4,), **options}
    given.setdefault("effective_batch", max(given["micro_batches"]))
    return compile_backbone(source, PackOptions(**given), lambda stage, detail: None)


_DEFAULT = Tuning()


@functools.cache
def adapted(name: str, batch: int = 2, tuning: Tuning = _DEFAULT) -> Adapted:
    """The stage before differentiation."""
    backbone = normalize(captured(name).at_batch(batch))
    slices_to_splits(backbone.model)
    return adapt(backbone.model, backbone.data_inputs, backbone.features, classes=len(LABELS),
                 tuning=tuning, seed=0)


def session(model: ir.Model | Path, *, profile: Path | None = None) -> Any:
    """A session with the settings of the board's runtime; ``profile``: where to write one."""
    options = ort.SessionOptions()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key in ("disable_prepacking", "disable_quant_qdq"):
        options.add_session_config_entry(f"session.{key}", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    content = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(model: ir.Model | Path | Any, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs by name; ``model`` may be a session that is there already."""
    made = session(model) if isinstance(model, (ir.Model, Path)) else model
    names = [o.name for o in made.get_outputs()]
    return dict(zip(names, made.run(None, dict(feeds)), strict=True))


def images(made: Compiled | Adapted, batch: int, seed: int = 0) -> np.ndarray:
    """Noise of unit variance for the only data input, [batch, ...]."""
    value = (made.data_inputs if isinstance(made, Adapted) else made.backbone.data_inputs)[0]
    shape = (batch, *shape_of(value)[1:])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def batch_of(made: Compiled, batch: int, seed: int = 0) -> Arrays:
    """Data, soft targets and unequal weights; the last sample is padding."""
    rng = np.random.default_rng(seed + 1000)
    classes = made.trainables[-1].initial.shape[0]
    hard = np.eye(classes, dtype=np.float32)[rng.integers(classes, size=batch)]
    weight = rng.uniform(0.5, 1.5, batch).astype(np.float32) / batch
    if batch > 1:
        weight[-1] = 0.0
    return {made.backbone.data_inputs[0].name or "": images(made, batch, seed),
            "target": 0.9 * hard + np.float32(0.1 / classes), "weight": weight}


def parameters(made: Compiled) -> Arrays:
    """Start values and zero accumulators."""
    return {**{f"param.{t.name}": t.initial for t in made.trainables},
            **{f"acc.{t.name}": np.zeros_like(t.initial) for t in made.trainables}}


def gradients(made: Compiled, model: ir.Model, data: Arrays) -> Arrays:
    """Gradient of every trainable by name, at the start values."""
    outputs = run(model, {**data, **parameters(made)})
    return {t.name: outputs[f"acc_out.{t.name}"] for t in made.trainables}


def check_static(model: ir.Model) -> None:
    """Every value has a known shape and dtype."""
    for node in model.graph:
        for value in node.outputs:
            if value.name:
                shape_of(value)
                dtype_of(value)
