"""``pack --format ort-training``: a backbone becomes artifacts of the On-Device Training API.

The same compiler as for a bundle, and another last stage. Nothing is rehearsed: what runs the
artifacts is not on this host.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from s2a_edge.pack.capture import Captured
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.interface import input_specs, task
from s2a_edge.pack.network import capture_source
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.ort_training.checkpoint import write_checkpoint
from s2a_edge.pack.ort_training.file_order import fix_order
from s2a_edge.pack.ort_training.graphs import (
    ADAMW,
    eval_model,
    optimizer_model,
    parameter_name,
    ports,
    training_model,
)
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.versions import versions
from s2a_edge.spec.bundle_write import rename_over
from s2a_edge.spec.checksums import SUMS_NAME, format_sums, sha256_file
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.storage import storage_errors
from s2a_edge.spec.strict_json import plain
from s2a_edge.spec.text_inputs import TOKENIZER_NAME

FORMAT = "s2a-ort-training"
DESCRIPTION = "artifacts.json"
TRAINING, EVAL, OPTIMIZER = "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx"
CHECKPOINT = "checkpoint"
# What a session needs so that nothing is computed early, twice or kept too long.
SESSION = {"graph_optimization_level": "disable all", "memory_pattern": False}
SESSION_CONFIG = {"session.disable_prepacking": "1", "session.disable_quant_qdq": "1"}

_README = """Artifacts of onnxruntime's On-Device Training API (1.19), written by s2a-edge.

training_model.onnx   forward, loss and backward; what the backward needs is kept in few bits
eval_model.onnx       forward and loss
optimizer_model.onnx  the update
checkpoint            start values of the parameters that train
weights.bin           everything frozen; both models read it from the folder that they lie in
artifacts.json        ports with shapes, preprocessing, parameters, memory plan
SHA256SUMS            sha256sum -c SHA256SUMS

Feed the inputs that artifacts.json lists, in their order: data, then what the loss takes. Of
cross-entropy that is a row of class probabilities for each sample and its weight, 1 / effective
batch, or 0 for padding. Gradients of several training steps add up; call lazy_reset_grad after each
optimizer step.

Session options that are needed:
- graph optimizations off. They would undo the order of execution, and break the training graph;
- memory pattern off, and the configuration entries of artifacts.json, "session": without them the
  step computes the same in more memory.
The order of execution is part of the graph: it takes no option.
"""

Stage = Callable[[str, str], None]


@dataclass(frozen=True)
class ArtifactsReport:
    """What was written.

    Attributes:
        path: the folder.
        description: content of ``artifacts.json``.
        size_bytes: of all files.
    """

    path: Path
    description: Mapping[str, Any]
    size_bytes: int


def pack_ort_training(source: str, out: Path, options: PackOptions,
                      on_stage: Stage = lambda stage, detail: None) -> ArtifactsReport:
    """Compiles ``source`` into a folder of artifacts.

    Args:
        source: as for :func:`s2a_edge.pack.build.pack`.
        out: the folder; it must not exist, or hold artifacts, which are replaced at the end.
        options: the recipe, with one micro-batch and no budget.
        on_stage: told the name and a detail of each stage as it begins.

    Raises:
        UsageError: ``out`` is something else, or the recipe asks for what artifacts cannot have.
        SourceError: the backbone cannot be read or compiled.
        StorageError: the disk refuses; what existed at ``out`` is untouched.
    """
    _require(out, options)
    on_stage("capture", source)
    captured = capture_source(source, options)
    for note in captured.notes:
        on_stage("note", note)
    # Onnxruntime-training binds its outputs itself: they cannot have places.
    options = replace(options, places="arena")
    compiled = compile_backbone(captured, options, on_stage)
    with storage_errors(out, "to write the artifacts"):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.", dir=out.parent))
        try:
            description = write_artifacts(staging, captured, compiled, options, on_stage)
            staging.chmod(0o755)  # temporary folders are closed to other users
            rename_over(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        size_bytes = sum(file.stat().st_size for file in out.iterdir())
    return ArtifactsReport(out, description, size_bytes)


def _require(out: Path, options: PackOptions) -> None:
    whole = (out / DESCRIPTION).is_file() and (out / SUMS_NAME).is_file()
    free = not out.exists() or (out.is_dir() and (whole or not any(out.iterdir())))
    checks = [
        (str(out), free and not out.is_symlink(), "a new folder, or artifacts to replace",
         "something else", "choose another --out"),
        ("--micro-batch", len(options.micro_batches) == 1, "one: the API has one training graph",
         str(options.micro_batches), "give one number"),
        ("--budget", options.budget_bytes is None, "none: no rehearsal tells what a process of "
         "another runtime needs", "a budget", "leave it out, or use --saved-budget"),
        ("--precision", options.precision == "fp32", "fp32: the On-Device Training API scales no "
         "gradients", options.precision, "leave --precision out, or pack a bundle"),
        ("--out", out.suffix != ".s2a", "a folder", out.name, "give a name without .s2a"),
    ]
    for where, holds, expected, got, todo in checks:
        if not holds:
            raise UsageError(where=where, expected=expected, got=got, todo=todo)


def write_artifacts(folder: Path, captured: Captured, compiled: Compiled, options: PackOptions,
                    on_stage: Stage = lambda stage, detail: None) -> dict[str, Any]:
    """Writes all files into ``folder`` and returns the description.

    Raises:
        StorageError: the disk refuses.
    """
    ((batch, step),) = compiled.steps.items()
    training = training_model(step.model, compiled.trainables)
    fix_order(training)
    evaluation = eval_model(compiled.evaluation, options.loss)
    on_stage("emit", "training, evaluation and optimizer model, checkpoint")
    models = (training, evaluation)
    weights = {e.name: e for e in emit_weights(models, folder / WEIGHTS_NAME,
                                               compiled.coder.wholes)}
    emit_model(training, weights, folder / TRAINING)
    emit_model(evaluation, weights, folder / EVAL)
    with storage_errors(folder, "to write the artifacts"):
        (folder / OPTIMIZER).write_bytes(optimizer_model(options.optimizer).SerializeToString())
        write_checkpoint(folder / CHECKPOINT,
                         {parameter_name(t): t.initial for t in compiled.trainables})
        if captured.tokenizer is not None:
            shutil.copyfile(captured.tokenizer, folder / TOKENIZER_NAME)
        (folder / "README.txt").write_text(_README, encoding="utf-8")
        description = _description(compiled, options, training, evaluation, batch)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n",
                                          encoding="utf-8")
        sums = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
        (folder / SUMS_NAME).write_bytes(format_sums(sums))
    return description


def _description(compiled: Compiled, options: PackOptions, training: ir.Model,
                 evaluation: ir.Model, batch: int) -> dict[str, Any]:
    backbone, step = compiled.backbone, compiled.steps[batch]
    planned = plan_memory(step.model, threads=1).plan
    optimizer = {"adamw": {"kind": "AdamWOptimizer", **ADAMW},
                 "sgd": {"kind": "SGDOptimizerV2"}}[options.optimizer]
    described = {
        "format": FORMAT, "format_version": 1, "versions": versions(), "source": backbone.source,
        "micro_batch": batch, "effective_batch": options.effective_batch, "task": task(options),
        "inputs": input_specs(backbone), "preprocessing": backbone.preprocessing,
        "training_inputs": ports(training), "training_outputs": _outputs(training),
        "eval_inputs": ports(evaluation), "eval_outputs": _outputs(evaluation),
        "optimizer": optimizer,
        "parameters": [{"name": parameter_name(t), "shape": list(t.initial.shape), "kind": t.kind,
                        "module": t.module} for t in compiled.trainables],
        "saved_bytes": sum(s.stored_bytes for s in step.saved),
        "planned_liveness_peak_bytes": planned.liveness_peak_bytes,
        "session": {**SESSION, "config": SESSION_CONFIG},
        "recipe": {"bits": options.bits, "adapters": options.adapters,
                   "attention": options.attention, "blocks": options.blocks,
                   "recompute": options.recompute, "frozen": options.frozen,
                   "seed": options.seed},
    }
    made = plain(described)
    assert isinstance(made, dict)
    return made


def _outputs(model: ir.Model) -> list[str]:
    return [v.name or "" for v in model.graph.outputs if "." not in (v.name or "")]


__all__ = ["ArtifactsReport", "pack_ort_training", "write_artifacts"]
