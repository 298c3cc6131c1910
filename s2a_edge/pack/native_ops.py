"""Nodes of the domain ``s2a.edge``: one kernel each for what takes the portable graph several.

The kernels are in ``s2a_edge/native``. A graph has such nodes only if it was made with
``GraphBuilder.native``; whoever emits one says when it applies and has the portable nodes for when
it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from s2a_edge.native import NATIVE_DOMAIN

if TYPE_CHECKING:
    from s2a_edge.pack.graph import GraphBuilder

_F32, _U16 = ir.DataType.FLOAT, ir.DataType.UINT16
# What the first output of each is; a second one is always bfloat16, one scale for each row.
_OUTPUTS = {
    "PackWords": _U16, "PackColumns": _U16, "UnpackWords": _F32, "UnpackTimes": _F32,
    "UnpackColumns": _F32, "AbsoluteMaxima": _F32, "QuantizeRows": ir.DataType.INT8,
    "DequantizeRows": _F32, "SoftmaxGradient": _F32, "LayerNormGradient": _F32,
}
NATIVE_OPERATORS = frozenset(_OUTPUTS)
CODES_PER_WORD = 4


def infer_native(node: ir.Node) -> None:
    """Shape and dtype of the outputs, which the attributes say."""
    shape = [int(extent) for extent in node.attributes.get_ints("shape") or ()]
    first = node.outputs[0]
    first.dtype, first.shape = _OUTPUTS[node.op_type], ir.Shape(shape)
    if len(node.outputs) > 1:
        inner = node.attributes.get_int("inner", 1)
        rows = int(np.prod(shape, dtype=np.int64)) // inner
        node.outputs[1].dtype = ir.DataType.BFLOAT16
        node.outputs[1].shape = ir.Shape([rows])


def native(g: GraphBuilder, op_type: str, *inputs: ir.Value, shape: tuple[int, ...],
           **attributes: float | list[float]) -> ir.Value:
    """Appends one such node with one output of ``shape``."""
    return g.multi(op_type, inputs, 1, domain=NATIVE_DOMAIN, name=None,
                   shape=list(shape), **attributes)[0]


__all__ = ["CODES_PER_WORD", "NATIVE_DOMAIN", "NATIVE_OPERATORS", "infer_native", "native"]
