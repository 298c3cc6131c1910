"""What products read, over calibration data: the second moments by which rounding errors count.

A matrix W [K, M] that is rounded to W + E changes x W by x E; over the data that is tr(Eᵀ H E) with
H = E[xᵀ x] [K, K]. Errors in directions that inputs hardly have cost hardly anything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from s2a_edge.pack.calibration import Samples
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.graph import dtype_of, shape_of

# Enough for the moments of 768 to 1536 inputs where a sample has 197 tokens.
_MOST_SAMPLES = 320
# A moment of more inputs is not worth its inverse: a minute for 8192.
_MOST_INPUTS = 4096


@dataclass(frozen=True)
class Moment:
    """Of one matrix.

    Attributes:
        axis: of the matrix, along which products sum.
        values: H, float32 [K, K], K the matrix's size along ``axis``.
    """

    axis: int
    values: NDArray[np.float32]


def second_moments(evaluation: ir.Model, samples: Samples,
                   initial: Mapping[str, NDArray[np.float32]], threads: int) -> dict[str, Moment]:
    """Second moments of the inputs of matrices in ``evaluation``, by the matrix's name.

    Args:
        evaluation: a graph with every product of the forward, its weights not coded yet.
        samples: data, at most 320 samples of it.
        initial: start values of the trainables.
        threads: of one operator.

    Returns:
        None for matrices that several products read, or anything but plain products.
    """
    read = {str(v.name): found for v in evaluation.graph.initializers.values()
            if (found := _operand(v)) is not None}
    names = sorted({name for name, _ in read.values()})
    batch = shape_of(evaluation.graph.inputs[0])[0]
    count = min(max(1, _MOST_SAMPLES // batch), samples.batches(batch))
    sums: dict[str, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory(prefix="s2a-moments-") as folder:
        session = _session(evaluation, names, Path(folder), threads)
        for number in range(count):
            feeds = samples.feeds(evaluation, initial, number)
            inner = [name for name in names if name not in feeds]  # an input is no output
            values = {**feeds, **dict(zip(inner, session.run(inner, feeds), strict=True))}
            for name in names:
                rows = values[name]
                flat = rows.reshape(-1, rows.shape[-1])
                made = flat.T @ flat / np.float32(len(flat) * count)
                sums[name] = made + sums[name] if name in sums else made
    return {weight: Moment(axis, sums[name]) for weight, (name, axis) in read.items()
            if np.isfinite(sums[name]).all()}


def _operand(weight: ir.Value) -> tuple[str, int] | None:
    """What the one product that reads ``weight`` multiplies it with, and the axis it sums along."""
    uses = list(weight.uses())
    if weight.const_value is None or len(shape_of(weight)) != 2 or len(uses) != 1:
        return None
    node, index = uses[0].node, uses[0].idx
    flags = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    x = node.inputs[0]
    if (node.op_type not in ("Gemm", "FusedMatMul", "MatMul") or index != 1 or flags[0]
            or x is None or not x.name or x.const_value is not None
            or dtype_of(x) != ir.DataType.FLOAT):
        return None
    axis = 1 if flags[1] else 0
    return (x.name, axis) if shape_of(weight)[axis] <= _MOST_INPUTS else None


def _session(model: ir.Model, names: Iterable[str], folder: Path, threads: int,
             ) -> ort.InferenceSession:
    """The graph with the values ``names`` among its outputs."""
    tapped = model.clone()
    made = {v.name: v for node in tapped.graph for v in node.outputs}
    have = {v.name for v in (*tapped.graph.outputs, *tapped.graph.inputs)}
    tapped.graph.outputs.extend(made[name] for name in names if name not in have)
    entries = {e.name: e for e in emit_weights([tapped], folder / WEIGHTS_NAME)}
    emit_model(tapped, entries, folder / "moments.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(folder / "moments.onnx"), options,
                                providers=["CPUExecutionProvider"])


__all__ = ["Moment", "second_moments"]
