"""Runs one operator's forward and backward: in ONNX Runtime, and in onnx's reference evaluator."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.differentiate import StepGraph, vector_jacobian_product
from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.precision import Precision
from tests.pack.ops.sample import Sample

UNCOMPRESSED = Precision(32, "store")


class FusedMatMul(OpRun):
    """``alpha · op(A) op(B)``, for the reference evaluator."""

    op_domain = MICROSOFT

    def _run(self, a: Any, b: Any, transA: int = 0, transB: int = 0,
             alpha: float = 1.0, **_: Any) -> tuple[Any]:
        a = np.swapaxes(a, -1, -2) if transA else a
        b = np.swapaxes(b, -1, -2) if transB else b
        return ((alpha or 1.0) * (a @ b)).astype(a.dtype),


class Gelu(OpRun):
    """GELU in the dtype of its input; the evaluator's own goes through float32 constants."""

    def _run(self, x: Any, approximate: str | None = None) -> tuple[Any]:
        if approximate == "tanh":
            cumulative = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        else:
            cumulative = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return (x * cumulative).astype(x.dtype),


class QuickGelu(OpRun):
    """``x σ(αx)`` in the dtype of its input."""

    op_domain = MICROSOFT

    def _run(self, x: Any, alpha: float = 1.702) -> tuple[Any]:
        return (x * 0.5 * (1 + np.tanh(0.5 * alpha * x))).astype(x.dtype),


class Erf(OpRun):
    """erf in the dtype of its input; the evaluator's own is float32."""

    def _run(self, x: Any) -> tuple[Any]:
        return np.vectorize(math.erf)(x).astype(x.dtype),


class LayerNormalization(OpRun):
    """Layer normalization in the dtype of its input; the evaluator's own stashes float32."""

    def _run(self, x: Any, scale: Any, bias: Any = None, axis: int = -1,
             epsilon: float = 1e-5, stash_type: int = 1) -> tuple[Any, Any, Any]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axes, keepdims=True)
        inverse = 1 / np.sqrt(x.var(axes, keepdims=True) + epsilon)
        y = (x - mean) * inverse * scale
        y = y if bias is None else y + bias
        return y.astype(x.dtype), mean.astype(x.dtype), inverse.astype(x.dtype)


class ConvTranspose(OpRun):
    """One product per place of the kernel; the evaluator's own fails for groups."""

    def _run(self, x: Any, w: Any, b: Any = None, strides: Any = None, dilations: Any = None,
             pads: Any = None, output_padding: Any = None, group: int = 1, **_: Any) -> tuple[Any]:
        spatial = x.ndim - 2
        strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
        pads, extra = pads or [0] * 2 * spatial, output_padding or [0] * spatial
        maps = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        kernel = w.reshape(group, -1, *w.shape[1:])
        size = [(n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(
            x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)]
        y = np.zeros((x.shape[0], group * w.shape[1], *size), x.dtype)
        for place in np.ndindex(*w.shape[2:]):
            inner: tuple[Any, ...] = (..., *place)
            part = np.einsum("ngc...,gcm->ngm...", maps, kernel[inner])
            at: tuple[Any, ...] = (..., *(slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in
                                          zip(place, dilations, x.shape[2:], strides,
                                              strict=True)))
            y[at] += part.reshape(*y.shape[:2], *x.shape[2:])
        kept: tuple[Any, ...] = (..., *(slice(pads[i], n - pads[spatial + i])
                                        for i, n in enumerate(size)))
        y = y[kept]
        return (y if b is None else y + b.reshape(-1, *[1] * spatial)).astype(x.dtype),


_OWN = [ConvTranspose, FusedMatMul, Gelu, QuickGelu, Erf, LayerNormalization]


@dataclass(frozen=True)
class Built:
    """A sample's step graph with random inputs and seeds."""

    step: StepGraph
    inputs: dict[str, np.ndarray]
    seeds: dict[str, np.ndarray]

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {**self.inputs, **self.seeds}


def build(sample: Sample, dtype: str, seed: int = 0, precision: Precision = UNCOMPRESSED) -> Built:
    """The sample's graph and gradients in ``dtype``."""
    rng = np.random.default_rng(seed)
    g = GraphBuilder()
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    operands: list[ir.Value | None] = []
    inputs: dict[str, np.ndarray] = {}
    opened: list[ir.Value] = []
    for index, given in enumerate(sample.inputs):
        if given is None:
            operands.append(None)
        elif isinstance(given, np.ndarray):
            # Scales of Resize are float32 in any case; samples of them are given as such.
            array = given.astype(dtype) if given.dtype == np.float64 else given
            operands.append(g.initializer(f"frozen{index}", array))
        else:
            value = g.input(f"x{index}", kind, given)
            draw = rng.standard_normal(given) * sample.spread
            inputs[value.name or ""] = np.asarray(
                np.abs(draw) + 0.5 if sample.positive else draw, dtype)
            operands.append(value)
            opened.append(value)
    outputs = g.multi(sample.op, operands, sample.outputs, domain=sample.domain,
                      **sample.attributes)
    step = vector_jacobian_product(g.nodes, opened, outputs, precision)
    seeds = {f"dy_{i}": np.asarray(rng.standard_normal(shape_of(v)), dtype)
             for i, v in enumerate(outputs)}
    return Built(step, inputs, seeds)


def executed(profile: str) -> list[str]:
    """Names of the nodes that a profiled session ran, in order."""
    events = json.loads(Path(profile).read_text(encoding="utf-8"))
    return [e["name"].removesuffix("_kernel_time") for e in events
            if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def run_reference(built: Built, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs and gradients by onnx's reference evaluator."""
    proto = ir.to_proto(built.step.model)
    evaluator = ReferenceEvaluator(proto, new_ops=_OWN)
    names = [o.name for o in proto.graph.output]
    return dict(zip(names, evaluator.run(None, feeds), strict=True))


def run_ort(built: Built, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs and gradients by ONNX Runtime, in file order."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(built.step.model).SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))
