"""What is written in opset 18 computes what was compiled in opset 21."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.oldest_opset import opset_of, write_in_oldest_opset
from tests.pack.compiled import LABELS, compiled

# One unit in the last place or two: the tanh form folds a constant differently.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6


def _run(model: ir.Model, x: np.ndarray, *, restamp: bool) -> tuple[np.ndarray, int]:
    proto = ir.to_proto(model)
    if restamp:
        write_in_oldest_opset(model, proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    opset = next(e.version for e in proto.opset_import if not e.domain)
    return session.run(None, {"x": x})[0], opset


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_of_the_runtimes_domain_computes_the_same(approximate: str) -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (4, 64))
    y = g.op("Gelu", g.op("ReduceMax", x, g.constant(np.array([1], np.int64)), keepdims=1),
             approximate=approximate)
    model = model_of([x], [y], g, "gelu")
    data = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    expected, before = _run(model, data, restamp=False)
    got, after = _run(model, data, restamp=True)
    assert (before, after) == (21, 18)
    np.testing.assert_allclose(got, expected, _RELATIVE, _ABSOLUTE)


@pytest.mark.parametrize("what", ["blocks of scales", "words of 16 bits", "4 bits"])
def test_what_opset_18_cannot_say_stays_in_opset_21(what: str) -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (4, 8))
    if what == "blocks of scales":
        codes = g.input("codes", ir.DataType.INT8, (4, 8))
        y = g.op("DequantizeLinear", codes, g.constant(np.ones((2, 8), np.float32)), axis=0,
                 block_size=2)
    else:
        dtype = np.uint16 if what == "words of 16 bits" else ir.DataType.UINT4.numpy()
        y = g.op("QuantizeLinear", x, g.constant(1.0), g.constant(np.zeros((), dtype)))
    model = model_of([x], [y], g, "g")
    assert opset_of(model) == 21
    proto = ir.to_proto(model)
    before = proto.SerializeToString()
    write_in_oldest_opset(model, proto)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_training_steps_are_written_in_opset_18(name: str) -> None:
    made = compiled(name)
    assert len(LABELS) == made.trainables[-1].initial.shape[0]
    for model in (made.steps[4].model, made.evaluation, made.optimizer):
        assert opset_of(model) == 18
