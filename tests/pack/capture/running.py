"""Runs captured graphs in ONNX Runtime, and compares them with what they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from s2a_edge.pack.capture import Backbone, Captured
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize import normalize

# Folding and reassociation in float32; the deepest backbone here measures 1e-6.
RELATIVE_TOLERANCE = 1e-4


def run_bytes(model: bytes, feeds: dict[str, np.ndarray], output: int = 0) -> np.ndarray:
    """Output ``output`` of a serialized model, nothing optimized."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[output])


def run_model(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return run_bytes(ir.to_proto(model).SerializeToString(), feeds)


def random_inputs(backbone: Backbone, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal images; token ids below 10; masks of ones."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for value in backbone.data_inputs:
        shape = shape_of(value)
        if value.dtype == ir.DataType.FLOAT:
            feeds[str(value.name)] = rng.standard_normal(shape, dtype=np.float32)
        elif "mask" in str(value.name):
            feeds[str(value.name)] = np.ones(shape, np.int64)
        else:
            feeds[str(value.name)] = rng.integers(0, 10, shape, dtype=np.int64)
    return feeds


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def run_file_until(path: Path, value: str | None, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What an ONNX file computes at an internal value (None: at its first output)."""
    model = onnx.load(path)
    for declared in model.graph.input:  # some files declare one size and compute any
        dims = declared.type.tensor_type.shape.dim
        for dim, size in zip(dims, feeds[declared.name].shape, strict=True):
            dim.dim_value = size
    if value is not None:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(value))
    return run_bytes(model.SerializeToString(), feeds, 0 if value is None else -1)


def run_eager(module: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    with torch.no_grad():
        out = module(*(torch.from_numpy(x) for x in feeds.values()))
    return np.asarray(out.numpy())


def both_forms(captured: Captured, batch: int) -> tuple[Backbone, Backbone]:
    backbone = captured.at_batch(batch)
    return backbone, normalize(backbone)
