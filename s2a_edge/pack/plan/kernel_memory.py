"""What ONNX Runtime's CPU kernels do with memory: aliases, in-place results, absent values.

The operators are listed in :mod:`s2a_edge.spec.cpu_kernels`, which boards read too. Both the
planner and its verifier read these facts; neither reads the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.spec.cpu_kernels import ALIASES, ELEMENTWISE, IN_PLACE

# Inline initializers up to this size are copied by the session and counted against the arena's
# limit, byte for byte; larger ones and external data are not (from onnxruntime 1.23 on).
_COUNTED_INITIALIZER_BYTES = 127


def alias_source(node: ir.Node) -> ir.Value | None:
    """The operand whose buffer the only output of ``node`` must share, if any."""
    if node.domain == "" and node.op_type in ALIASES:
        return node.inputs[0]
    return None


def in_place_source(node: ir.Node) -> ir.Value | None:
    """The operand whose buffer the only output of ``node`` takes over if it is read last here."""
    if node.domain != "" or node.op_type not in IN_PLACE:
        return None
    source, result = node.inputs[0], node.outputs[0]
    if source is None or shape_of(source) != shape_of(result):
        return None
    before, after = dtype_of(source), dtype_of(result)
    return source if before == after or before.bitwidth == after.bitwidth >= 8 else None


def overwritable(node: ir.Node) -> tuple[ir.Value, ...]:
    """Operands over which the only output of ``node`` may be written, where both are bound."""
    source = in_place_source(node)
    if source is not None:
        return (source,)
    if node.domain != "" or node.op_type not in ELEMENTWISE or len(node.inputs) > 2:
        return ()
    result = node.outputs[0]
    return tuple(x for x in dict.fromkeys(node.inputs) if x is not None
                 and shape_of(x) == shape_of(result) and dtype_of(x) == dtype_of(result))


def present_outputs(node: ir.Node) -> Iterator[ir.Value]:
    """The outputs that the runtime computes: optional ones without a name are left out."""
    return (value for value in node.outputs if value.name)


def counted_initializer_bytes(model: ir.Model) -> int:
    """Bytes of small inline initializers, which the runtime counts against the arena's limit."""
    sizes = (v.const_value.nbytes for v in model.graph.initializers.values()
             if v.const_value is not None and v.uses())  # the runtime drops unused ones
    return sum(size for size in sizes if size <= _COUNTED_INITIALIZER_BYTES)
