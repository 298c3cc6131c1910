"""Graphs are compiled in opset 21 and written in opset 18, where they mean the same.

ONNX Runtime's CUDA provider registers kernels by the opset in which an operator last changed, and
is years behind: up to 1.23 it has none for Reshape, Cast, Transpose and Unsqueeze of opset 21, up
to 1.25 none for Equal of 19 and ReduceMax of 20. Of opset 18 it has all that is emitted, in every
version from 1.22 on, and the CPU provider runs the same kernels for both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx_ir as ir
from onnx import ModelProto, defs

from s2a_edge.pack.graph import MICROSOFT, OPSET, dtype_of

OLDEST_OPSET = 18  # reductions take axes as an operand, Split takes num_outputs
# Gelu is a standard operator from opset 20 on; the runtime has had it in its own domain before.
_GELU = {"none": "Gelu", "tanh": "FastGelu"}
TENSOR_TYPES = {
    ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double", ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16", ir.DataType.BOOL: "bool", ir.DataType.INT8: "int8",
    ir.DataType.INT16: "int16", ir.DataType.INT32: "int32", ir.DataType.INT64: "int64",
    ir.DataType.UINT8: "uint8", ir.DataType.UINT16: "uint16", ir.DataType.UINT32: "uint32",
    ir.DataType.UINT64: "uint64", ir.DataType.INT4: "int4", ir.DataType.UINT4: "uint4",
}


def opset_of(model: ir.Model) -> int:
    """The opset that ``model`` is written in: 18, or 21 if it has a node that needs it."""
    return OLDEST_OPSET if all(_means_the_same(node) for node in model.graph) else OPSET


def write_in_oldest_opset(model: ir.Model, proto: ModelProto) -> None:
    """Restamps ``proto``, the serialized ``model``, if every node means the same in opset 18."""
    if opset_of(model) == OPSET:
        return
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = OLDEST_OPSET
    for node, written in zip(model.graph, proto.graph.node, strict=True):
        domain, op_type = written_as(node)
        if op_type != node.op_type or domain != node.domain:
            written.domain, written.op_type = domain, op_type
            del written.attribute[:]


def written_as(node: ir.Node) -> tuple[str, str]:
    """Domain and operator that stand for ``node`` in a graph of opset 18."""
    if node.op_type == "Gelu" and not node.domain:
        return MICROSOFT, _GELU[node.attributes.get_string("approximate", "none")]
    return node.domain, node.op_type


def _means_the_same(node: ir.Node) -> bool:
    """Whether opset 18 has the operator with these attributes, operands and types.

    Between 18 and 21 ONNX widened types and added attributes; what stayed expressible kept its
    meaning, except GroupNormalization, which is lowered before.
    """
    if node.domain or node.op_type == "Gelu":
        return True
    schema = _schema(node.op_type)
    if (schema is None or not set(node.attributes) <= set(schema.attributes)
            or not schema.min_input <= len(node.inputs) <= schema.max_input
            or node.op_type == "GroupNormalization"):
        return False
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    ports = [*zip(node.inputs, _formal(schema.inputs, len(node.inputs)), strict=True),
             *zip(node.outputs, _formal(schema.outputs, len(node.outputs)), strict=True)]
    return all(value is None or not value.name or f"tensor({TENSOR_TYPES.get(dtype_of(value))})"
               in allowed.get(kind, frozenset({kind})) for value, kind in ports)


@functools.cache
def _schema(op_type: str) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op_type, OLDEST_OPSET, "")
    except defs.SchemaError:
        return None


def _formal(formal: Sequence[defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """The type of each of ``count`` ports; the last formal one may stand for many."""
    return [formal[min(i, len(formal) - 1)].type_str for i in range(count)]


__all__ = ["OLDEST_OPSET", "TENSOR_TYPES", "opset_of", "write_in_oldest_opset", "written_as"]
