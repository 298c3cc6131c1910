"""Lowered operators compute the same and leave nothing behind that the runtime would expand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.lower import lower


def _outputs(model: ir.Model, **data: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(),
                                   providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(None, data)[0]
    return made


@pytest.mark.parametrize("op", ["Celu", "Mean"])
def test_what_gpus_lack(op: str) -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (4, 5))
    y = g.op("Celu", x, alpha=0.7) if op == "Celu" else g.op(
        "Mean", x, g.constant(np.array(2, np.float32)), g.constant(np.arange(5, dtype=np.float32)))
    model = model_of([x], [y], g, "lower")
    data = np.linspace(-5, 5, 20, dtype=np.float32).reshape(4, 5)
    expected = _outputs(model, x=data)
    lower(model)
    assert op not in {n.op_type for n in model.graph}
    np.testing.assert_allclose(_outputs(model, x=data), expected, rtol=1e-5, atol=1e-6)


def _run(model: ir.Model, data: dict[str, Any]) -> Any:
    outputs: Any = ReferenceEvaluator(ir.to_proto(model)).run(None, data)
    return outputs[0]


@pytest.mark.parametrize("op", ["HardSwish", "Mish"])
def test_same_values_same_names_other_operators(op: str) -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (4, 5))
    first = g.op(op, x, name="inner")
    last = g.op(op, first, name="outer")
    model = model_of([x], [last], g, "lower")
    data = {"x": np.linspace(-5, 5, 20, dtype=np.float32).reshape(4, 5)}
    expected = _run(model, data)
    lower(model)
    assert not {op} & {n.op_type for n in model.graph}
    assert [v.name for v in model.graph.outputs] == ["outer"]
    np.testing.assert_allclose(_run(model, data), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("op", "scale"), [("LpNormalization", None), ("RMSNormalization", 2.0)])
def test_norms_of_rows(op: str, scale: float | None) -> None:
    """x / |x|, and x / √(mean x² + ε) times the scale; rows of zeros stay zeros."""
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (3, 4))
    more = [] if scale is None else [g.initializer("scale", np.full(4, scale, np.float32))]
    model = model_of([x], [g.op(op, x, *more, axis=-1)], g, "lower")
    lower(model)
    assert op not in {n.op_type for n in model.graph}
    data = np.arange(12, dtype=np.float32).reshape(3, 4) - 4
    data[0] = 0
    length = np.sqrt((data**2).sum(1, keepdims=True)) if scale is None else np.sqrt(
        (data**2).mean(1, keepdims=True) + 1e-5) / scale
    expected = np.divide(data, length, out=np.zeros_like(data), where=length > 0)
    np.testing.assert_allclose(_run(model, {"x": data}), expected, rtol=1e-6)
