"""One initializer per use, each with a name that says where it is used.

Exporters and optimizers merge equal initializers: all biases that start at zero become one
tensor. Training them as one would be wrong, so every operand that may be trained is its own.
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.capture.modules import is_anonymous
from s2a_edge.pack.graph import module_of, shape_of

# Operand index -> the suffix that PyTorch uses.
_ROLES: dict[str, dict[int, str]] = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "MatMul": {0: "weight", 1: "weight"},
    "FusedMatMul": {0: "weight", 1: "weight"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "RMSNormalization": {1: "weight"},
    "BatchNormalization": {1: "weight", 2: "bias"},
    "GroupNormalization": {1: "weight", 2: "bias"},
    "Add": {0: "bias", 1: "bias"},
    "Mul": {0: "scale", 1: "scale"},
}
# A constant of more axes in these is a position embedding or the like, with a name of its own.
_VECTORS_ONLY = frozenset({"Add", "Mul"})


def own_parameters(graph: ir.Graph) -> None:
    """Gives each use of a trainable-looking float constant its own, readably named initializer.

    A constant that several nodes read is split if it is one-dimensional (a bias, a scale, an
    offset); a larger shared one (tied weights) stays shared. The data is shared by all copies.
    """
    taken = set(graph.initializers) | {v.name for n in graph for v in n.outputs if v.name}
    kept: set[ir.Value] = set()
    shared = {v for v in graph.initializers.values()
              if len(v.uses()) > 1 and len(shape_of(v)) == 1}
    for node in graph:
        for index, suffix in _ROLES.get(node.op_type, {}).items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not _is_parameter(value, node):
                continue
            wanted = f"{module_of(node)}.{suffix}"
            if value in shared and (value in kept or value.name != wanted):
                node.replace_input_with(index, _copy(graph, value, _free(wanted, taken)))
                continue
            if value not in kept and is_anonymous(str(value.name)):
                value.name = _free(wanted, taken)
            kept.add(value)
    for value in [v for v in graph.initializers.values() if not v.uses()]:
        del graph.initializers[str(value.name)]


def _is_parameter(value: ir.Value, node: ir.Node) -> bool:
    vectors_only = node.op_type in _VECTORS_ONLY
    return (value.const_value is not None and value.dtype == ir.DataType.FLOAT
            and value.const_value.size > 1
            and not (vectors_only and len(shape_of(value)) != 1))


def _free(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def _copy(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """Another initializer over the same data."""
    tensor = value.const_value
    assert tensor is not None
    copy = ir.Value(name=name, type=value.type, shape=value.shape,
                    const_value=ir.tensor(tensor.numpy(), name=name))
    graph.register_initializer(copy)
    return copy
