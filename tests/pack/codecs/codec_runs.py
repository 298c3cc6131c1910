"""Runs a codec's nodes in ONNX Runtime, as tests need them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.codecs import Codec, codec_for

# Every kind and number of bits that has a codec of its own.
CHOICES = [
    *((f"derivative:{function}", bits) for bits in (1, 2, 3, 4, 8) for function in (
        "gelu", "gelu_tanh", "silu", "mish", "hardswish", "elu", "softplus", "sigmoid", "tanh",
        "erf", "softsign")),
    ("mask", 1), ("mask:relu6", 1), ("derivative:hardsigmoid", 4),
    *((kind, bits) for kind in ("normalized", "activation", "probability")
      for bits in (2, 3, 4, 8, 16, 32)),
    *(("index", bits) for bits in (1, 2, 3, 4, 8)),
]


@dataclass(frozen=True)
class Result:
    """What one run stored and gave back."""

    stored_bytes: int
    stored: tuple[ort.OrtValue, ...]
    decoded: np.ndarray


def run(codec: Codec, x: np.ndarray) -> Result:
    """Encodes and decodes ``x`` on CPU, under the settings of a training step."""
    g = GraphBuilder()
    operand = g.input("x", ir.DataType.FLOAT, x.shape)
    stored = codec.encode(g, operand)
    decoded = codec.decode(g, stored, x.shape)
    copies = [g.op("Identity", value) for value in (*stored, decoded)]
    options = ort.SessionOptions()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    model = ir.serde.serialize_model(model_of([operand], copies, g, "codec"))
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    *parts, last = session.run_with_ort_values(
        [copy.name for copy in copies], {"x": ort.OrtValue.ortvalue_from_numpy(x)})
    return Result(sum(part.tensor_size_in_bytes() for part in parts), tuple(parts), last.numpy())


def nodes(codec: Codec, shape: tuple[int, ...]) -> list[ir.Node]:
    """The nodes that ``codec`` emits for a value of ``shape``."""
    g = GraphBuilder()
    stored = codec.encode(g, g.input("x", ir.DataType.FLOAT, shape))
    codec.decode(g, stored, shape)
    return g.nodes


def sample(kind: str, bits: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Plausible values of a kind, float32 of ``shape``."""
    rng = np.random.default_rng(seed)
    if kind == "index":
        return rng.integers(0, 1 << bits, shape).astype(np.float32)
    x = (2 * rng.standard_normal(shape)).astype(np.float32)
    if kind == "probability":
        x = np.exp(x - x.max(-1, keepdims=True))
        x /= x.sum(-1, keepdims=True)
    return x


def codec_of(kind: str, bits: int, x: np.ndarray) -> Codec:
    """The codec for ``x``."""
    return codec_for(kind, bits, x.shape)
