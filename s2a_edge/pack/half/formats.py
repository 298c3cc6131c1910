"""float16 and bfloat16: their numbers, and which operators compute in them.

The policy is that of automatic mixed precision (arXiv 1710.03740, torch.amp): products in half,
with float32 accumulators inside the kernels; what follows keeps the type of its largest operand;
exponentials, logarithms, powers, norms of vectors, and sums outside of gradients in float32. The
kernels of LayerNormalization, Softmax, ReduceMean and ReduceSum read and give half but take their
statistics in float32 themselves.

An operator is in a list only if ONNX Runtime's CUDA provider has a kernel for it with that type, in
the opset that graphs are written in (``oldest_opset``; docs/OperatorKernels.md of onnxruntime); any
other computes in float32. QuantizeLinear takes no float16 before opset 19.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from s2a_edge.pack.graph import MICROSOFT

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")

_PRODUCTS_BF16 = frozenset({("", "Gemm"), ("", "MatMul"), (MICROSOFT, "FusedMatMul")})
_PRODUCTS_FP16 = _PRODUCTS_BF16 | {("", "Conv"), ("", "ConvTranspose")}

# Keep the type of their largest operand.
_FOLLOWING_BF16 = frozenset({
    "Add", "Concat", "Div", "Erf", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Gelu", "Identity", "LayerNormalization", "Mul", "Neg", "ReduceSum", "Relu", "Reshape",
    "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Slice", "Softmax", "Split",
    "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
_FOLLOWING_FP16 = _FOLLOWING_BF16 | {
    "Abs", "AveragePool", "Ceil", "Clip", "DepthToSpace", "Elu", "Equal",
    "Floor", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid",
    "LeakyRelu", "Less", "LessOrEqual", "Max", "MaxPool", "Min", "PRelu", "Pad", "ReduceMax",
    "ReduceMean", "ReduceMin", "Resize", "Round", "Selu", "Softsign", "SpaceToDepth",
    "ThresholdedRelu",
}  # fmt: skip
# Operands that are float32 by the operator's definition, whatever its other operands are.
FIXED_OPERANDS = {"Resize": frozenset({1, 2})}
# All numbers of these types are numbers of either format.
EXACT_IN_HALF = frozenset({ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.INT8})
# Constants from here on stand for infinity: what masks add, what padding of a maximum holds.
_ENDLESS = 1e9


@dataclass(frozen=True)
class Half:
    """A half-precision format.

    Attributes:
        name: as ``--precision`` has it.
        dtype: of the graphs' values.
        largest: its largest number.
        smallest: below this in magnitude its numbers have fewer bits.
        endless: what constants that stand for infinity become; a sum with an activation is finite.
        products: operators (domain, name) that compute in it whatever the types of their operands.
        following: operators of the standard domain that keep the type of their largest operand.
    """

    name: Precision
    dtype: ir.DataType
    largest: float
    smallest: float
    endless: float
    products: frozenset[tuple[str, str]]
    following: frozenset[str]

    def computes(self, node: ir.Node) -> bool:
        """Whether the CUDA provider has a kernel of ``node`` for the format."""
        key = node.domain, node.op_type
        return key in self.products or (node.domain == "" and node.op_type in self.following) or (
            key == (MICROSOFT, "QuickGelu"))

    def clips(self, array: NDArray[np.floating]) -> bool:
        """Whether :meth:`constant` puts other numbers into the place of some."""
        return bool((np.abs(array) >= _ENDLESS).any())

    def constant(self, array: NDArray[np.floating]) -> NDArray[np.float32] | None:
        """``array`` with numbers that the format has, not rounded; None where it would suffer.

        A tensor whose largest magnitude the format cannot hold in full (LayerScale starts at
        1e-6) is better left in float32.
        """
        values = np.asarray(array, np.float32)
        endless = np.abs(values) >= _ENDLESS
        values = np.where(endless, np.copysign(np.float32(self.endless), values), values)
        finite = np.abs(np.where(endless, 0, values))
        largest = float(finite.max(initial=0.0))
        holds = largest == 0.0 or self.smallest <= largest <= self.largest  # NaN compares false
        return values if holds else None


FP16 = Half("fp16", ir.DataType.FLOAT16, 65504.0, 2.0**-14, 32752.0, _PRODUCTS_FP16,
            _FOLLOWING_FP16)
BF16 = Half("bf16", ir.DataType.BFLOAT16, 3.3895313892515355e38, 2.0**-126, 1e38,
            _PRODUCTS_BF16, _FOLLOWING_BF16)
HALVES: dict[str, Half] = {"fp16": FP16, "bf16": BF16}

__all__ = ["BF16", "EXACT_IN_HALF", "FIXED_OPERANDS", "FP16", "HALVES", "PRECISIONS", "Half",
           "Precision"]
