"""What values and nodes say: shape, dtype, bytes, module; and the keys of our own marks on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from s2a_edge.spec.errors import InternalError

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
MODULE_KEY = "s2a.module"
KIND_KEY = "s2a.kind"
# Marks constants of one graph (axes, codebooks): their names mean nothing in another graph.
CONSTANT_KEY = "s2a.constant"
# Says of a constant that capture made it: "rearranged", a parameter in another shape, or
# "computed" (masks, interpolated tables), which is no parameter.
FOLDED_KEY = "s2a.folded"
# Marks nodes whose outputs are cheaper to compute again in the backward than to keep.
RECOMPUTE_KEY = "s2a.recompute"
# On a node that runs for one part of the micro-batch: the number of the part.
SAMPLES_KEY = "s2a.samples"
# Marks an initializer that belongs to a coded weight: kept among the weights, however small.
CODED_KEY = "s2a.coded"
# Marks nodes that compute in float32 at any precision (``half``).
FLOAT32_KEY = "s2a.float32"
# Marks an initializer that is a run of rows of a stored matrix: "<first row>:<name of the matrix>".
PART_KEY = "s2a.part"

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of ``value``.

    Raises:
        InternalError: if a dimension is unknown.
    """
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        raise InternalError(where=f"value {value.name}", expected="a static shape",
                            got=str(value.shape), todo="report this")
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]  # checked just above


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of ``value``; InternalError where it is unknown."""
    if value.dtype is None:
        raise InternalError(where=f"value {value.name}", expected="a dtype", got="none",
                            todo="report this")
    return value.dtype


def nbytes_of(value: ir.Value) -> int:
    """Bytes of ``value`` as a runtime stores it: 4-bit types two to a byte, none without a name."""
    if not value.name:
        return 0  # an optional output that nobody reads
    count = int(np.prod(shape_of(value), dtype=np.int64))
    return (count * dtype_of(value).bitwidth + 7) // 8


def module_of(node: ir.Node) -> str:
    """The name of the module that a node came from, as a PyTorch user knows it."""
    if MODULE_KEY in node.metadata_props:
        return node.metadata_props[MODULE_KEY]
    scopes = node.metadata_props.get(_SCOPES_KEY, "")
    names = [part.strip().strip("'\"[]") for part in scopes.split(",")]
    named = [n for n in names[:-1] if n]
    return named[-1] if named else (node.name or node.op_type)


def leading_to(nodes: Sequence[ir.Node], values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that compute ``values``, directly or not; ``nodes`` are in order."""
    wanted: set[ir.Value] = set(values)
    found: set[ir.Node] = set()
    for node in reversed(nodes):
        if any(v in wanted for v in node.outputs):
            found.add(node)
            wanted.update(v for v in node.inputs if v is not None)
    return found


__all__ = [
    "CODED_KEY", "CONSTANT_KEY", "FLOAT32_KEY", "FOLDED_KEY", "IR_VERSION", "KIND_KEY", "MICROSOFT",
    "MODULE_KEY", "OPSET", "PART_KEY", "RECOMPUTE_KEY", "SAMPLES_KEY", "dtype_of", "leading_to",
    "module_of", "nbytes_of", "shape_of",
]
