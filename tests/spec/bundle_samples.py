"""Small valid manifests and bundles for tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from safetensors.numpy import save_file

from s2a_edge.spec.bundle_write import write_bundle, write_weights
from s2a_edge.spec.manifest import (
    BatchGraph,
    Compat,
    Graphs,
    InferGraph,
    InputSpec,
    Manifest,
    OptimizerGraph,
    Preprocessing,
    Recipe,
    SavedValue,
    Source,
    Task,
    Trainable,
    WeightEntry,
)
from s2a_edge.spec.memory_plan import Evidence, GradientError, MemoryKind, MemoryPlan


def plan() -> MemoryPlan:
    at_peak = {MemoryKind.SAVED: 600, MemoryKind.WORKING: 400}
    return MemoryPlan(
        liveness_peak_bytes=1000,
        lower_bound_bytes=900,
        arena_bytes=1280,
        peak_node="block.0/mlp/MatMul",
        at_peak=at_peak,
        saved_bytes=600,
        node_count=7,
        threads=2,
        whole_image_arena_bytes=1536,
        whole_image_thread_bytes=512,
    )


def evidence(with_gradients: bool = True) -> Evidence:
    error = (
        GradientError(0.01, 0.9999, 0.02, 0.004, "head.weight", {"head.weight": 0.02})
        if with_gradients
        else None
    )
    return Evidence(
        machine="test host, 2 cores",
        onnxruntime="1.32.0",
        arena_measured_bytes=1280,
        process_peak_bytes=40_000_000,
        runtime_base_bytes=30_000_000,
        session_bytes=1_000_000,
        step_ms=1.5,
        n=10,
        gradient_error=error,
    )


def graphs(train_batches: tuple[int, ...] = (1, 2), eval_batch: int = 4) -> Graphs:
    return Graphs(
        train=tuple(BatchGraph(f"train_b{n}.onnx", n, plan(), evidence()) for n in train_batches),
        eval=BatchGraph("eval.onnx", eval_batch, plan(), evidence(with_gradients=False)),
        infer=InferGraph("infer.onnx", ("backbone.weight",)),
        optimizer=OptimizerGraph("optimizer.onnx", plan(), evidence(with_gradients=False)),
    )


def manifest() -> Manifest:
    """Input x [n, 6] -> frozen backbone [6, 5] -> trained head [5, 3]."""
    return Manifest(
        format="s2a-bundle",
        format_version=2,
        created="2026-01-31T12:00:00Z",
        tool_version="0.1.0",
        versions={"onnx": "1.23.0", "numpy": "2.4.0"},
        source=Source("onnx", "tiny.onnx", None, "features", None, 21),
        inputs=(InputSpec("x", "float32", (6,), "tensor"),),
        preprocessing=None,
        task=Task("cross_entropy", 3, ("ant", "bee", "cat")),
        recipe=Recipe(("bias",), 4, "store", "adamw", 4, (1, 2), None, 0),
        trainables=(
            Trainable("head.bias", (3,), "head_bias", "head", False, 12),
            Trainable("head.weight", (5, 3), "head_weight", "head", True, 60),
        ),
        saved=(SavedValue("features", "head", "activation", "uint4", 4.0, (2, 5), 5),),
        weights=(WeightEntry("backbone.weight", "float32", (6, 5), 0, 120),),
        graphs=graphs(),
        compat=Compat("1.19", ("cpu", "cuda")),
    )


def image_preprocessing() -> Preprocessing:
    return Preprocessing(
        kind="image",
        size=(224, 224),
        layout="NCHW",
        channels="RGB",
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
        crop_pct=0.875,
    )


def _value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))


def _per_trainable(prefix: str) -> list[onnx.ValueInfoProto]:
    return [_value(f"{prefix}.head.bias", 3), _value(f"{prefix}.head.weight", 5, 3)]


def external_weight(location: str = "weights.bin", offset: int = 0) -> onnx.TensorProto:
    """backbone.weight as the graphs refer to it."""
    tensor = onnx.TensorProto(name="backbone.weight", dims=[6, 5], data_type=1)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "120")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    """A graph with this face; its nodes are not meant to compute anything sensible."""
    node = helper.make_node("MatMul", [inputs[0].name, "backbone.weight"], ["logits"], name="n")
    graph = helper.make_graph([node], "g", inputs, outputs, initializer=weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def models() -> dict[str, onnx.ModelProto]:
    """Graphs that fit :func:`manifest`, written out by hand from the contract."""
    made = {}
    for n in (1, 2):
        inputs = [_value("x", n, 6), _value("target", n, 3), _value("weight", n)]
        inputs += _per_trainable("param") + _per_trainable("acc")
        outputs = [_value("loss"), _value("logits", n, 3), *_per_trainable("acc_out")]
        made[f"train_b{n}.onnx"] = model(inputs, outputs, [external_weight()])
    inputs = [_value("x", 4, 6), *_per_trainable("param")]
    made["eval.onnx"] = model(inputs, [_value("logits", 4, 3)], [external_weight()])
    made["infer.onnx"] = model([_value("x", 1, 6)], [_value("logits", 1, 3)], [])
    scalars = ["lr", "weight_decay", "clip", "beta1", "beta2", "eps"]
    scalars += ["correction1", "correction2"]
    inputs = [_value(s) for s in scalars]
    inputs += [_value(role, 64) for role in ("param", "acc", "m", "v")]
    outputs = [_value(role, 64) for role in ("param_out", "m_out", "v_out")]
    made["optimizer.onnx"] = model(inputs, outputs, [])
    return made


def parameters() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "head.bias": np.zeros(3, np.float32),
        "head.weight": rng.normal(size=(5, 3)).astype(np.float32),
    }


def backbone_weight() -> np.ndarray[Any, Any]:
    return np.arange(30, dtype=np.float32).reshape(6, 5)


def stage(folder: Path) -> Path:
    """All files of the sample bundle but the manifest and the checksums."""
    folder.mkdir()
    for name, proto in models().items():
        (folder / name).write_bytes(proto.SerializeToString())
    write_weights(folder / "weights.bin", [("backbone.weight", backbone_weight())])
    save_file(parameters(), folder / "adapters.safetensors")
    return folder


def write_sample(out: Path, made: Manifest | None = None) -> Path:
    """The sample bundle at ``out``, with another manifest if one is given."""
    staging = stage(out.parent / "staging")
    write_bundle(staging, made or manifest(), out)
    shutil.rmtree(staging, ignore_errors=True)
    return out
