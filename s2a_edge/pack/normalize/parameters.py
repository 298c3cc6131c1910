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
    "GroupNormalization": {1: "weight", 2: "bias"},
    "InstanceNormalization": {1: "weight", 2: "bias"},
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
    claimed: set[ir.Value] = set()
    for node in graph:
        for index, suffix in _ROLES.get(node.op_type, {}).items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not _is_parameter(value):
                continue
            vector = len(shape_of(value)) == 1
            if not vector and node.op_type in _VECTORS_ONLY:
                continue
            wanted = f"{module_of(node)}.{suffix}"
            shared = len(value.uses()) > 1 and vector
            if shared and (value in claimed or not _belongs(value, node)):
                node.replace_input_with(index, _copy(graph, value, _free(wanted, taken)))
            elif value not in claimed and is_anonymous(str(value.name)):
                taken.discard(str(value.name))
                _rename(graph, value, _free(wanted, taken))
            claimed.add(value)
    for value in [v for v in graph.initializers.values() if not v.uses()]:
        del graph.initializers[str(value.name)]


def _is_parameter(value: ir.Value) -> bool:
    return (value.const_value is not None and value.dtype == ir.DataType.FLOAT
            and value.const_value.size > 1)


def _belongs(value: ir.Value, node: ir.Node) -> bool:
    """Whether the shared constant is named after this node's module, or after nobody's."""
    stem = str(value.name).rpartition(".")[0]
    if not stem or stem == module_of(node):
        return True
    return all(module_of(use.node) != stem for use in value.uses())


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


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if name != value.name:
        value.name = name
