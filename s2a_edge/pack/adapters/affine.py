"""Which nodes are affine layers with frozen weights."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, shape_of

_NORMS = (("", "LayerNormalization"), ("", "RMSNormalization"))
_PRODUCTS = (("", "MatMul"), ("", "Gemm"), (MICROSOFT, "FusedMatMul"))


def is_affine(node: ir.Node) -> bool:
    """Whether a bias can be added behind ``node``, along its last axes."""
    return is_linear(node) or (node.domain, node.op_type) in _NORMS


def is_linear(node: ir.Node) -> bool:
    """A product of an activation with a frozen matrix."""
    if (node.domain, node.op_type) not in _PRODUCTS:
        return False
    a, w = node.inputs[0], node.inputs[1]
    return (a is not None and a.const_value is None and w is not None
            and w.const_value is not None and len(shape_of(w)) == 2)


def is_channel_vector(shape: tuple[int, ...], channels: int) -> bool:
    """Whether ``shape`` is [channels] but for leading ones."""
    return bool(shape) and shape[-1] == channels and all(d == 1 for d in shape[:-1])
