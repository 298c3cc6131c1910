"""Small valid manifests and bundles for tests."""

from __future__ import annotations

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
    )


def evidence(with_gradients: bool = True) -> Evidence:
    error = GradientError(max=0.02, median=0.004, worst="head.weight") if with_gradients else None
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
        format_version=1,
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
