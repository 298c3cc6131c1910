"""Files of opsets 7 to 26: what an operator meant in its own opset is what is captured."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from s2a_edge.pack.capture import capture
from s2a_edge.pack.capture.onnx_file import read_onnx
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.pack.normalize import normalize
from s2a_edge.pack.ops import RULES
from s2a_edge.spec.errors import SourceError
from tests.pack.capture.running import random_inputs, relative_error, run_bytes, run_model

_TOLERANCE = 2e-6  # the same float32 arithmetic, at most reassociated


@dataclass(frozen=True)
class Graph:
    """Nodes from ``x`` [N, 3, 4, 4] to ``y``, and the opsets in which they are written so."""

    name: str
    opsets: tuple[int, ...]
    nodes: tuple[tuple[Any, ...], ...]  # (op_type, inputs, outputs, attributes)
    weights: dict[str, Any] = field(default_factory=dict)


def _one(name: str, opsets: tuple[int, ...], op: str, *more: str,
         weights: dict[str, Any] | None = None, **attributes: Any) -> Graph:
    return Graph(name, opsets, ((op, ("x", *more), ("y",), attributes),), weights or {})


def _floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def _ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


_LINEAR = {"w": np.random.default_rng(1).standard_normal((48, 5), np.float32),
           "b": np.random.default_rng(2).standard_normal(5, np.float32)}
_CHANNELS = {n: np.abs(np.random.default_rng(k).standard_normal(3, np.float32)) + 0.5
             for k, n in enumerate("sbmv")}
_TWICE = {"scales": _floats(1, 1, 2, 2)}
_LARGER = {"scales": _floats(1, 1, 1.5, 2.25)}
_WITH_ROI = {"roi": _floats(), **_LARGER}
_OLD, _NEW = (7, 9, 11, 12), (13, 17, 21, 23)

GRAPHS = (
    # Before 13 these treated x as a matrix from the axis on; the axis was 1 unless given.
    _one("softmax-default", (*_OLD, *_NEW), "Softmax"),
    _one("softmax-1", (*_OLD, *_NEW), "Softmax", axis=1),
    _one("softmax-2", (*_OLD, *_NEW), "Softmax", axis=2),
    _one("softmax-last", (11, 12, *_NEW), "Softmax", axis=-1),
    _one("log-softmax-1", (*_OLD, *_NEW), "LogSoftmax", axis=1),
    Graph("squeeze", _OLD, (("Unsqueeze", ("x",), ("u",), {"axes": [1]}),
                            ("Squeeze", ("u",), ("y",), {"axes": [1]}))),
    Graph("squeeze", _NEW, (("Unsqueeze", ("x", "a"), ("u",), {}),
                            ("Squeeze", ("u", "a"), ("y",), {})), weights={"a": _ints(1)}),
    _one("reduce-sum", _OLD, "ReduceSum", axes=[2, 3], keepdims=0),
    _one("reduce-sum", _NEW, "ReduceSum", "a", weights={"a": _ints(-1, 2)}, keepdims=0),
    _one("reduce-mean", (*_OLD, 13, 17), "ReduceMean", axes=[1], keepdims=1),
    _one("reduce-mean", (18, 21, 23), "ReduceMean", "a", weights={"a": _ints(1)}),
    _one("reduce-l2", (7, 11, 13), "ReduceL2", axes=[3], keepdims=1),
    Graph("split", _OLD, (("Split", ("x",), ("p", "q"), {"axis": 2}),
                          ("Sub", ("p", "q"), ("y",), {}))),
    Graph("split-sizes", _OLD, (("Split", ("x",), ("p", "q"), {"axis": 1, "split": [1, 2]}),
                                ("Mul", ("p", "q"), ("y",), {}))),
    Graph("split", (13, 17), (("Split", ("x",), ("p", "q"), {"axis": 2}),
                              ("Sub", ("p", "q"), ("y",), {}))),
    Graph("split", (18, 21, 23), (("Split", ("x",), ("p", "q"), {"axis": 2, "num_outputs": 2}),
                                  ("Sub", ("p", "q"), ("y",), {}))),
    _one("clip", (7, 9), "Clip", min=-0.5, max=0.7),
    _one("clip", (11, *_NEW), "Clip", "low", "high",
         weights={"low": np.float32(-0.5), "high": np.float32(0.7)}),
    _one("pad", (7, 9), "Pad", pads=[0, 0, 1, 0, 0, 0, 2, 1]),
    _one("pad", (11, *_NEW), "Pad", "p", weights={"p": _ints(0, 0, 1, 0, 0, 0, 2, 1)}),
    _one("slice", (7, 9), "Slice", starts=[1], ends=[3], axes=[2]),
    _one("slice", (11, *_NEW), "Slice", "f", "t", "a",
         weights={"f": _ints(1), "t": _ints(3), "a": _ints(2)}),
    _one("upsample-nearest", (7,), "Upsample", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
    _one("upsample-linear", (7,), "Upsample", mode="linear", scales=[1.0, 1.0, 2.0, 2.0]),
    _one("upsample-nearest", (9,), "Upsample", "scales", mode="nearest", weights=_LARGER),
    _one("upsample-linear", (9,), "Upsample", "scales", mode="linear", weights=_TWICE),
    _one("resize-nearest", (10,), "Resize", "scales", mode="nearest", weights=_LARGER),
    _one("resize-linear", (10,), "Resize", "scales", mode="linear", weights=_LARGER),
    *(_one(f"resize-{mode}-{place}", opsets, "Resize", roi, "scales", mode=mode,
           coordinate_transformation_mode=place, weights=weights)
      for mode in ("nearest", "linear", "cubic")
      for place in ("half_pixel", "align_corners", "asymmetric")
      for opsets, roi, weights in (((11,), "roi", _WITH_ROI), ((13, 19, 21, 23), "", _LARGER))),
    _one("dropout", (7, 10, 12, *_NEW), "Dropout"),
    _one("batch-norm", (7, 9, 14, 15, 21), "BatchNormalization", "s", "b", "m", "v",
         weights=_CHANNELS),
    _one("instance-norm", (7, 9, 21, 22), "InstanceNormalization", "s", "b", weights=_CHANNELS),
    _one("average-pool", (7, 10, 11, 19, 22), "AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    _one("max-pool", (8, 10, 11, 12, 22), "MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    _one("pow", (7, 12, 13, 15), "Pow", "e", weights={"e": np.float32(2.0)}),
    _one("p-relu", (7, 9, 16), "PRelu", "slope", weights={"slope": _floats(0.1, 0.2, 0.3, 0.4)}),
    Graph("gemm", (7, 9, 11, 13), (("Flatten", ("x",), ("f",), {}),
                                   ("Gemm", ("f", "w", "b"), ("y",), {})), weights=_LINEAR),
    _one("gelu", (20, 21, 23), "Gelu", approximate="tanh"),
    _one("layer-norm", (17, 21, 23), "LayerNormalization", "s", "b", axis=-1,
         weights={"s": _floats(1, 2, 3, 4), "b": _floats(4, 3, 2, 1)}),
    _one("group-norm", (21, 23), "GroupNormalization", "s", "b", num_groups=1,
         weights={n: _CHANNELS[n] for n in "sb"}),
    _one("rms-norm", (23,), "RMSNormalization", "s", weights={"s": _floats(1, 2, 3, 4)}),
    Graph("attention", (23,), (("Attention", ("x", "x", "x"), ("y",), {}),)),
    _one("swish", (24,), "Swish", alpha=1.0),
    _one("softmax", (24, 25), "Softmax"),
    _one("reshape", (24, 25), "Reshape", "shape", weights={"shape": _ints(0, 12, 4)}),
)
CASES = [(g, opset) for g in GRAPHS for opset in g.opsets]


def _model(graph: Graph, opset: int, batch: int | str) -> onnx.ModelProto:
    """With -y as features [N, D]: behind a Neg, nothing is taken for a classifier."""
    nodes = [*graph.nodes, ("Neg", ("y",), ("minus",), {}),
             ("Flatten", ("minus",), ("features",), {"axis": 1})]
    made = helper.make_graph(
        [helper.make_node(op, list(inputs), list(outputs), **attributes)
         for op, inputs, outputs, attributes in nodes], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name)
         for name, array in graph.weights.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)],
                             ir_version=8 if opset < 21 else 10)


@pytest.mark.parametrize(("graph", "opset"), CASES,
                         ids=[f"{g.name}-{opset}" for g, opset in CASES])
def test_capture_computes_what_the_file_computes(graph: Graph, opset: int, tmp_path: Path) -> None:
    """Against ONNX Runtime on the file as it is; and gradients can pass what comes of it."""
    batch, path = 2, tmp_path / "m.onnx"
    onnx.save(_model(graph, opset, "n"), path)
    backbone = capture(str(path)).at_batch(batch)
    assert backbone.source.opset == opset
    normalized = normalize(backbone).model
    feeds = random_inputs(backbone)
    expected = run_bytes(_model(graph, opset, batch).SerializeToString(), feeds)
    for node in normalized.graph:
        assert RULES[node.domain, node.op_type].refuses(node) is None
    lower(normalized)
    for model in (backbone.model, normalized):
        assert relative_error(run_model(model, feeds), expected) < _TOLERANCE


def test_an_opset_of_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(GRAPHS[0], 99, 1), path)
    with pytest.raises(SourceError, match="an opset up to"):
        capture(str(path))


@pytest.mark.parametrize(("graph", "why"), [
    (_one("affine", (6,), "Affine", alpha=2.0, beta=1.0), "Affine"),
    # As broadcasting was before opset 7; the converter would take the last axis without a word.
    (_one("add", (6,), "Add", "b", broadcast=1, axis=1, weights={"b": _floats(1, 2, 3)}),
     "broadcasts along an axis"),
])
def test_what_does_not_convert_is_refused(graph: Graph, why: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(graph, 6, "n"), path)
    with pytest.raises(SourceError, match=why):
        capture(str(path))


class _Net(torch.nn.Module):
    """Convolution, attention over tokens, GELU, a norm: what exporters spell in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 2, stride=2)
        self.qkv = torch.nn.Linear(8, 24)
        self.norm = torch.nn.LayerNorm(8)
        self.gelu = torch.nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        mixed = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v
        y: torch.Tensor = self.gelu(tokens + mixed).mean(1) * 2.0
        return y


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20])
def test_files_of_torchs_older_exporter(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = _Net().eval(), tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its age
        torch.onnx.export(net, (torch.zeros(1, 3, 8, 8),), str(path), opset_version=opset,
                          dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    assert read_onnx(path)[1] == opset
    backbone = capture(str(path)).at_batch(2)
    normalized = normalize(backbone).model
    assert {"Gelu", "LayerNormalization"} <= {n.op_type for n in normalized.graph}
    softmax, = (n for n in normalized.graph if n.op_type == "Softmax")
    scores = softmax.inputs[0]
    product = None if scores is None else scores.producer()
    assert product is not None and product.op_type == "FusedMatMul"
    assert shape_of(softmax.outputs[0]) == (2, 16, 16)
    assert {n for n in normalized.graph.initializers if n.endswith("bias")} >= {
        "stem.bias", "qkv.bias", "norm.bias"}
    feeds = random_inputs(backbone)
    with torch.no_grad():
        expected = net(torch.tensor(feeds["x"])).numpy()
    assert relative_error(run_model(normalized, feeds), expected) < _TOLERANCE
