"""Nodes of the domain ``s2a.edge``: one kernel each for what takes the portable graph several.

The kernels are in ``s2a_edge/native``. A graph has such nodes only if it was made with
``GraphBuilder.native``; whoever emits one says when it applies and has the portable nodes for when
it does not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as ir

from s2a_edge.native import NATIVE_DOMAIN

if TYPE_CHECKING:
    from s2a_edge.pack.builder import GraphBuilder

_F32, _U16 = ir.DataType.FLOAT, ir.DataType.UINT16
# Types of the outputs; the first has the shape that the attribute says.
_OUTPUTS = {
    "PackWords": (_U16,), "PackColumns": (_U16,), "UnpackWords": (_F32,), "UnpackTimes": (_F32,),
    "UnpackColumns": (_F32,), "AbsoluteMaxima": (_F32,), "GeluWords": (_F32, _U16),
    "QuantizeRows": (ir.DataType.INT8, ir.DataType.BFLOAT16), "DequantizeRows": (_F32,),
    "UnpackHalves": (_F32,), "Add3": (_F32,), "Add4": (_F32,), "Add5": (_F32,),
    "ColumnSums": (_F32,), "SoftmaxGradient": (_F32,),
    "LayerNorm": (_F32, _F32, _F32), "LayerNormGradient": (_F32,),
}
NATIVE_OPERATORS = frozenset(_OUTPUTS)
CODES_PER_WORD = 4


def infer_native(node: ir.Node) -> None:
    """Shape and dtype of the outputs, which follow from the attributes."""
    shape = [int(extent) for extent in node.attributes.get_ints("shape") or ()]
    count, inner = math.prod(shape), node.attributes.get_int("inner", 1)
    others = {"GeluWords": [[count // CODES_PER_WORD]], "QuantizeRows": [[count // inner]],
              "LayerNorm": [shape, [*shape[:-1], 1]]}
    shapes = [shape, *others.get(node.op_type, [])]
    for value, dtype, made in zip(node.outputs, _OUTPUTS[node.op_type], shapes, strict=True):
        value.dtype, value.shape = dtype, ir.Shape(made)


def native(g: GraphBuilder, op_type: str, *inputs: ir.Value, shape: tuple[int, ...],
           **attributes: float | list[float]) -> ir.Value:
    """Appends one such node with one output of ``shape``."""
    return g.multi(op_type, inputs, 1, domain=NATIVE_DOMAIN, name=None,
                   shape=list(shape), **attributes)[0]


__all__ = ["CODES_PER_WORD", "NATIVE_DOMAIN", "NATIVE_OPERATORS", "infer_native", "native"]
