"""Shape and dtype of a node's outputs, from its inputs: by ONNX's schemas, and beyond them.

These know neither fused operators nor that no window of a pool begins behind its map.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, TypeProto, checker, defs, helper, shape_inference

from s2a_edge.pack.graph import IR_VERSION, MICROSOFT, OPSET, dtype_of, module_of, shape_of
from s2a_edge.pack.native_ops import NATIVE_DOMAIN, infer_native
from s2a_edge.spec.errors import InternalError

# Values whose *content* decides an output shape; onnx needs the data to infer those.
_SHAPE_DATA_BYTES = 4096


def infer_outputs(node: ir.Node) -> None:
    """Sets shape and dtype of the outputs of ``node`` from its inputs, by ONNX's schemas.

    Raises:
        InternalError: if the operator is unknown, its inputs do not fit it, or a shape stays open.
    """
    if node.domain == NATIVE_DOMAIN:
        infer_native(node)
        return
    own = _WITHOUT_SCHEMA.get((node.domain, node.op_type))
    if own is not None:
        own(node)
        return
    types: dict[str, TypeProto] = {}
    data: dict[str, TensorProto] = {}
    for value in node.inputs:
        if value is None or value.name is None:
            continue
        types[value.name] = helper.make_tensor_type_proto(
            int(dtype_of(value)), list(shape_of(value)))
        constant = value.const_value
        if constant is not None and constant.nbytes <= _SHAPE_DATA_BYTES:
            data[value.name] = ir.to_proto(constant)
    try:
        schema = defs.get_schema(node.op_type, OPSET, node.domain)
        inferred = shape_inference.infer_node_outputs(
            schema, ir.to_proto(node), types, data,
            opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    except (defs.SchemaError, shape_inference.InferenceError, checker.ValidationError,
            RuntimeError) as error:
        raise InternalError(
            where=f"{node.op_type} in {module_of(node)}", expected="inputs that fit the operator",
            got=f"{[(v.name, v.dtype, v.shape) for v in node.inputs if v]}: {error}",
            todo="report this") from error
    for value in node.outputs:
        if not value.name:
            continue
        tensor = inferred.get(value.name, TypeProto()).tensor_type
        if not tensor.HasField("shape") or not all(d.HasField("dim_value")
                                                   for d in tensor.shape.dim):
            raise InternalError(
                where=f"{node.op_type} in {module_of(node)}", expected="static output shapes",
                got=f"a shape of {value.name} that depends on data", todo="report this")
        value.dtype = ir.DataType(tensor.elem_type)
        value.shape = ir.Shape([d.dim_value for d in tensor.shape.dim])
    if node.op_type in _POOLS and node.attributes.get_int("ceil_mode", 0) != 0:
        _drop_windows_of_padding(node)


def _drop_windows_of_padding(node: ir.Node) -> None:
    """With ``ceil_mode`` no window starts in the padding behind the map, or beyond it.

    So the runtime and PyTorch have it; ONNX's own inference counts such windows up to opset 21.
    """
    x = node.inputs[0]
    assert x is not None
    size = shape_of(x)[2:]
    strides = node.attributes.get_ints("strides") or [1] * len(size)
    pads = node.attributes.get_ints("pads") or [0] * 2 * len(size)
    for value in node.outputs:
        if value.name:
            out = shape_of(value)
            kept = [n - ((n - 1) * s >= length + begin) for n, s, length, begin in zip(
                out[2:], strides, size, pads, strict=False)]
            value.shape = ir.Shape([*out[:2], *kept])


def _infer_fused_matmul(node: ir.Node) -> None:
    """A @ B with optional transposes of the last two axes and numpy broadcasting before them."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    a_shape, b_shape = list(shape_of(a)), list(shape_of(b))
    if node.attributes.get_int("transA", 0):
        a_shape[-2:] = a_shape[:-3:-1]
    if node.attributes.get_int("transB", 0):
        b_shape[-2:] = b_shape[:-3:-1]
    if a_shape[-1] != b_shape[-2]:
        raise InternalError(where=f"FusedMatMul in {module_of(node)}", expected="equal inner sizes",
                            got=f"{a_shape} @ {b_shape}", todo="report this")
    batch = np.broadcast_shapes(tuple(a_shape[:-2]), tuple(b_shape[:-2]))
    node.outputs[0].dtype = dtype_of(a)
    node.outputs[0].shape = ir.Shape([*batch, a_shape[-2], b_shape[-1]])


def _infer_like_input(node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    node.outputs[0].dtype, node.outputs[0].shape = dtype_of(x), ir.Shape(list(shape_of(x)))


_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})
# Operators that ONNX has no schema for, or one that does not infer shapes (GroupNormalization).
_WITHOUT_SCHEMA: dict[tuple[str, str], Callable[[ir.Node], None]] = {
    (MICROSOFT, "FusedMatMul"): _infer_fused_matmul,
    (MICROSOFT, "QuickGelu"): _infer_like_input,
    ("", "GroupNormalization"): _infer_like_input,
    ("", "RMSNormalization"): _infer_like_input,  # of opset 23; lowered before it is emitted
}


__all__ = ["infer_outputs"]
