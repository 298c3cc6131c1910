"""Elementwise kernels of the runtime give the same result when it is bound over an operand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from s2a_edge.spec.cpu_kernels import ELEMENTWISE

SHAPE = (64, 16384)
BINARY = ("Add", "Div", "Max", "Min", "Mul", "Sub")


def session(op_type: str, other: tuple[int, ...] | None) -> ort.InferenceSession:
    names = ["x"] if other is None else ["x", "z"]
    shapes = [SHAPE] if other is None else [SHAPE, other]
    inputs = [ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(s))
              for n, s in zip(names, shapes, strict=True)]
    node = ir.Node("", op_type, inputs, name="n")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(SHAPE)
    graph = ir.Graph(inputs, [y], nodes=[node], opset_imports={"": 18}, name="g")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    made = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    return ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("op_type", "other"), [
    *((op, None) for op in sorted(ELEMENTWISE - set(BINARY))),
    *((op, shape) for op in BINARY for shape in (SHAPE, SHAPE[1:], (SHAPE[0], 1), ())),
])  # fmt: skip
def test_a_result_over_its_operand(op_type: str, other: tuple[int, ...] | None) -> None:
    draw = np.random.default_rng(0)
    x = np.abs(draw.standard_normal(SHAPE)).astype(np.float32) + np.float32(0.5)
    feeds = {"x": x} if other is None else {
        "x": x, "z": np.array(draw.standard_normal(other) + 3, np.float32)}
    made = session(op_type, other)
    (apart,) = made.run(None, feeds)
    binding = made.io_binding()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, SHAPE, x.ctypes.data)
    made.run_with_iobinding(binding)
    assert np.array_equal(x, apart)
