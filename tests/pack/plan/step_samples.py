"""Small training steps: saved values of the forward, read in reverse by the backward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import MICROSOFT

FLOAT = ir.DataType.FLOAT


def mlp_step(*, blocks: int, width: int, rows: int, bits: int) -> ir.Model:
    """Residual blocks with GELU, and the backward that reads their saved values in reverse.

    x [rows, width]; saved per block: the pre-activation in ``bits`` (32: as it is), marked so.
    """
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    x = b.input("x", FLOAT, [rows, width])
    accumulators = [b.input(f"acc.{i}", FLOAT, [2 * width]) for i in range(blocks)]
    weights = [(b.initializer(f"up{i}", _normal(rng, 2 * width, width)),
                b.initializer(f"down{i}", _normal(rng, width, 2 * width)))
               for i in range(blocks)]
    bias = b.initializer("bias", _normal(rng, 2 * width))
    scale, h, saved = b.constant(0.1), x, []
    for up, down in weights:
        z = b.op("Gemm", h, up, bias, transB=1)
        code = z if bits == 32 else b.op(
            "QuantizeLinear", z, scale,
            output_dtype=int(ir.DataType.UINT4 if bits == 4 else ir.DataType.UINT8))
        code.metadata_props["s2a.kind"] = "saved"
        saved.append(code)
        h = b.op("Add", h, b.op("Gemm", b.op("Gelu", z), down, transB=1))
    loss = b.op("ReduceMean", h, keepdims=0)
    outputs, dh = [loss], b.op("Mul", h, loss)
    for i in reversed(range(blocks)):
        z = saved[i] if bits == 32 else b.op("DequantizeLinear", saved[i], scale)
        dz = b.op("Mul", b.op("MatMul", dh, weights[i][1]), b.op("Sigmoid", z))
        gradient = b.op("ReduceSum", dz, b.constant([0]), keepdims=0)
        outputs.append(b.op("Add", accumulators[i], gradient))
        if i:
            dh = b.op("Add", dh, b.op("MatMul", dz, weights[i][0]))
    return model_of([x, *accumulators], outputs, b, "mlp")


def conv_step(*, channels: Sequence[int], size: int, batch: int) -> ir.Model:
    """Convolutions with ReLU masks, pooled; the backward with ConvTranspose.

    x [batch, 3, size, size]; gradients of one bias per convolution.
    """
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    x = b.input("x", FLOAT, [batch, 3, size, size])
    h, kept, before = x, [], 3
    for i, after in enumerate(channels):
        w = b.initializer(f"w{i}", _normal(rng, after, before, 3, 3))
        stride = 1 + i % 2
        z = b.op("Conv", h, w, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)
        mask = b.op("Greater", z, b.constant(0.0))
        mask.metadata_props["s2a.kind"] = "saved"
        kept.append((w, mask, stride))
        h, before = b.op("Relu", z), after
    dh = b.op("Mul", h, b.op("GlobalAveragePool", h))
    outputs = []
    for i, (w, mask, stride) in reversed(list(enumerate(kept))):
        dz = b.op("Where", mask, dh, b.constant(0.0))
        outputs.append(b.op("ReduceSum", dz, b.constant([0, 2, 3]), keepdims=0))
        if i:
            dh = b.op("ConvTranspose", dz, w, kernel_shape=[3, 3], pads=[1] * 4,
                      strides=[stride] * 2, output_padding=[stride - 1] * 2)
    return model_of([x], outputs, b, "conv")


def attention_step(*, tokens: int, heads: int, width: int, blocks: int) -> ir.Model:
    """Attention blocks on [2, tokens, heads * width] whose saved values are 8-bit codes."""
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    dim = heads * width
    x = b.input("x", FLOAT, [2, tokens, dim])
    scale, zero = b.constant(0.05), b.constant(np.array(128, np.uint8))
    gain, shift = (b.initializer(name, _normal(rng, dim)) for name in ("gain", "shift"))
    h, kept = x, []
    for i in range(blocks):
        norm = b.op("LayerNormalization", h, gain, shift, axis=-1)
        w = b.initializer(f"qkv{i}", _normal(rng, dim, 3 * dim))
        qkv = b.op("Reshape", b.op("MatMul", norm, w), b.constant([2, tokens, 3, heads, width]))
        parts = b.multi("Split", [b.op("Transpose", qkv, perm=[2, 0, 3, 1, 4]),
                                  b.constant([1, 1, 1])], 3, axis=0)
        q, k, v = (b.op("Squeeze", part, b.constant([0])) for part in parts)
        p = b.op("Softmax", b.op("FusedMatMul", q, k, domain=MICROSOFT, transB=1), axis=-1)
        codes = [b.op("QuantizeLinear", value, scale, zero) for value in (q, k, v, p)]
        for code in codes:
            code.metadata_props["s2a.kind"] = "saved"
        kept.append(codes)
        y = b.op("Transpose", b.op("MatMul", p, v), perm=[0, 2, 1, 3])
        h = b.op("Add", h, b.op("Reshape", y, b.constant([2, tokens, dim])))
    dh = b.op("Reshape", h, b.constant([2, tokens, heads, width]))
    dy = b.op("Transpose", dh, perm=[0, 2, 1, 3])
    for codes in reversed(kept):
        q, k, v, p = (b.op("DequantizeLinear", code, scale, zero) for code in codes)
        dp = b.op("FusedMatMul", dy, v, domain=MICROSOFT, transB=1)
        row = b.op("ReduceSum", b.op("Mul", dp, p), b.constant([-1]), keepdims=1)
        ds = b.op("Mul", p, b.op("Sub", dp, row))
        dv = b.op("FusedMatMul", p, dy, domain=MICROSOFT, transA=1)
        dk = b.op("FusedMatMul", ds, q, domain=MICROSOFT, transA=1)
        dy = b.op("Add", b.op("Add", b.op("MatMul", ds, k), dk), dv)
    return model_of([x], [b.op("ReduceMean", dy, keepdims=0)], b, "attention")


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * 0.1).astype(np.float32)
