"""What ONNX Runtime rewrites although its graph optimizations are off: such nodes have no plan.

Operators without a kernel are replaced by the nodes of their definition, which get the highest
indices and therefore run after everything else that could: the file's order is lost. And a Cast
that loses nothing is dropped if only Casts read it, which then read its operand: that stays alive
in its place.
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, module_of
from s2a_edge.spec.errors import InternalError

# Defined by other operators and without a kernel in the CPU provider (1.32).
_INLINED = {
    "Bernoulli": "RandomUniformLike and Less",
    "CastLike": "Cast",
    "GroupNormalization": "InstanceNormalization of [N, groups, -1]",
    "HardSwish": "HardSigmoid (alpha 1/6, beta 1/2) and Mul",
    "Mish": "Softplus, Tanh and Mul",
    "NegativeLogLikelihoodLoss": "Mul and ReduceSum",
    "SoftmaxCrossEntropyLoss": "LogSoftmax, Mul and ReduceSum",
}

_UNSIGNED, _SIGNED, _FLOAT = range(3)
_FAMILY = {
    ir.DataType.UINT8: _UNSIGNED, ir.DataType.UINT16: _UNSIGNED, ir.DataType.UINT32: _UNSIGNED,
    ir.DataType.UINT64: _UNSIGNED, ir.DataType.INT8: _SIGNED, ir.DataType.INT16: _SIGNED,
    ir.DataType.INT32: _SIGNED, ir.DataType.INT64: _SIGNED, ir.DataType.FLOAT16: _FLOAT,
    ir.DataType.BFLOAT16: _FLOAT, ir.DataType.FLOAT: _FLOAT, ir.DataType.DOUBLE: _FLOAT,
}  # fmt: skip


def require_executed_as_written(node: ir.Node) -> None:
    """Checks that the runtime executes ``node`` itself, where it stands.

    Raises:
        InternalError: naming the node and what to write instead.
    """
    if node.domain == "" and node.op_type in _INLINED:
        raise InternalError(
            where=f"node {node.name} in {module_of(node)}", expected="an operator with a kernel",
            got=f"{node.op_type}, whose parts would run out of order",
            todo=f"emit {_INLINED[node.op_type]} instead")
    if _is_dropped(node):
        raise InternalError(
            where=f"node {node.name} in {module_of(node)}",
            expected="a Cast that loses something, or a reader that is no Cast",
            got="a Cast that the runtime drops: it loses nothing and only Casts read it",
            todo="cast the operand directly")


def _is_dropped(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Cast" or node.inputs[0] is None:
        return False
    result = node.outputs[0]
    readers = [user for user, _ in result.uses()]
    return (bool(readers) and not result.is_graph_output()
            and all(r.domain == "" and r.op_type == "Cast" for r in readers)
            and _keeps_everything(dtype_of(node.inputs[0]), dtype_of(result)))


def _keeps_everything(before: ir.DataType, after: ir.DataType) -> bool:
    """Whether the runtime takes a cast for one without loss."""
    if before == after:
        return before in _FAMILY
    if before == ir.DataType.BOOL:
        return after in _FAMILY
    if before not in _FAMILY or after not in _FAMILY:
        return False
    return _FAMILY[before] <= _FAMILY[after] and before.bitwidth < after.bitwidth


__all__ = ["require_executed_as_written"]
