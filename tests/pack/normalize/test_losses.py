"""Losses inside a graph: the spelled-out form against ONNX Runtime's own operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from s2a_edge.pack.capture.static_shapes import make_static
from s2a_edge.pack.normalize.losses import spell_out_losses
from tests.pack.capture.running import run_bytes

N, C = 6, 4
RNG = np.random.default_rng(0)


def model(op_type: str, shape: tuple[int, ...], *, weighted: str = "", second: bool = False,
          **attributes: Any) -> onnx.ModelProto:
    """One loss operator of scores ``shape``; weights frozen or given at run time."""
    labels = (shape[0], *shape[2:])
    inputs = [helper.make_tensor_value_info("z", 1, shape),
              helper.make_tensor_value_info("y", 7, labels)]
    names, frozen = ["z", "y"], []
    if weighted:
        names.append("w")
        if weighted == "frozen":
            frozen.append(helper.make_tensor("w", 1, [C], [0.5, 2.0, 1.0, 3.0]))
        else:
            inputs.append(helper.make_tensor_value_info("w", 1, [C]))
    outputs = ["loss", "log_p"] if second else ["loss"]
    node = helper.make_node(op_type, names, outputs, **attributes)
    made = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    graph = helper.make_graph([node], "loss", inputs, made, frozen)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def feeds(shape: tuple[int, ...], weighted: str, low: int = 0) -> dict[str, np.ndarray]:
    given: dict[str, np.ndarray] = {"z": RNG.standard_normal(shape).astype(np.float32),
                                    "y": RNG.integers(low, C, (shape[0], *shape[2:]))}
    if weighted == "given":
        given["w"] = RNG.uniform(0.5, 2, C).astype(np.float32)
    return given


def spelled(proto: onnx.ModelProto) -> ir.Model:
    result = ir.from_proto(proto)
    make_static(result)
    spell_out_losses(result.graph)
    assert not {n.op_type for n in result.graph} & {"SoftmaxCrossEntropyLoss",
                                                    "NegativeLogLikelihoodLoss"}
    return result


def assert_same(proto: onnx.ModelProto, given: dict[str, np.ndarray], outputs: int = 1) -> None:
    after = ir.to_proto(spelled(proto)).SerializeToString()
    for output in range(outputs):
        got, expected = (run_bytes(m, given, output) for m in (after, proto.SerializeToString()))
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", ["", "frozen", "given"])
@pytest.mark.parametrize("shape", [(N, C), (N, C, 3), (2, C, 3, 2)])
def test_cross_entropy_of_classes(shape: tuple[int, ...], weighted: str, reduction: str) -> None:
    for op_type in ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"):
        proto = model(op_type, shape, weighted=weighted, reduction=reduction)
        assert_same(proto, feeds(shape, weighted))


@pytest.mark.parametrize("ignored", [-100, -1, 0, 2])
@pytest.mark.parametrize("weighted", ["", "frozen", "given"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_classes_count_nowhere(ignored: int, weighted: str, reduction: str) -> None:
    proto = model("SoftmaxCrossEntropyLoss", (N, C), weighted=weighted, ignore_index=ignored,
                  reduction=reduction)
    given = feeds((N, C), weighted)
    given["y"][[1, 4]] = ignored
    assert_same(proto, given)


def test_the_logarithms_may_be_read_too() -> None:
    proto = model("SoftmaxCrossEntropyLoss", (N, C), second=True)
    assert_same(proto, feeds((N, C), ""), outputs=2)


@pytest.mark.parametrize(("inner", "expected"), [
    ("Sigmoid", ["Neg", "Softplus", "Neg"]), ("Softmax", ["LogSoftmax"])])
def test_logarithms_of_what_rounds_to_zero_are_stable(inner: str, expected: list[str]) -> None:
    value = helper.make_tensor_value_info("x", 1, [1, 4])
    nodes = [helper.make_node(inner, ["x"], ["p"]), helper.make_node("Log", ["p"], ["y"])]
    graph = helper.make_graph(nodes, "log", [value], [helper.make_tensor_value_info(
        "y", 1, [1, 4])])
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    after = spelled(proto)
    assert [n.op_type for n in after.graph] == expected
    x = np.array([[-1000.0, -3.0, 0.5, 200.0]], np.float32)
    got = run_bytes(ir.to_proto(after).SerializeToString(), {"x": x})
    exact = x.astype(np.float64)
    if inner == "Softmax":
        exact -= np.logaddexp.reduce(exact, axis=-1, keepdims=True)
    else:
        exact = -np.logaddexp(0, -exact)
    assert not np.isfinite(run_bytes(proto.SerializeToString(), {"x": x})).all()
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-7)
