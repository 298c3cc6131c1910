"""Everything trains, to be compared with: what a gradient rule reaches becomes a trainable.

Weights, kernels, biases, scales of norms and layers, embeddings. Three things differ from
fine-tuning in PyTorch: BatchNormalization is folded, so its layer's kernel and bias train in its
place (as with frozen statistics); position biases that are gathered from a table and added to
attention scores stay as they are, like masks; and no bias is added where there is none.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapters.adapter import Adapter
from s2a_edge.pack.capture.modules import is_anonymous
from s2a_edge.pack.graph import FOLDED_KEY, MICROSOFT, dtype_of, module_of, shape_of

# Operator -> positions of operands that may train, and what they are called.
_OPERANDS: dict[tuple[str, str], dict[int, str]] = {
    ("", "Conv"): {1: "weight", 2: "bias"},
    ("", "Gemm"): {0: "weight", 1: "weight", 2: "bias"},
    ("", "MatMul"): {0: "weight", 1: "weight"},
    (MICROSOFT, "FusedMatMul"): {0: "weight", 1: "weight"},
    ("", "LayerNormalization"): {1: "weight", 2: "bias"},
    ("", "GroupNormalization"): {1: "weight", 2: "bias"},
    ("", "RMSNormalization"): {1: "weight"},
    ("", "ConvTranspose"): {2: "bias"},
    ("", "Gather"): {0: "weight"},
    ("", "Mul"): {0: "scale", 1: "scale"},
    ("", "Add"): {0: "bias", 1: "bias"},
    ("", "Concat"): {},
    ("", "Expand"): {0: "weight"},
}
_NORMS = ("LayerNormalization", "GroupNormalization", "RMSNormalization")
# The operators whose matrices and kernels decay; position embeddings and class tokens do not.
_DECAYING = frozenset({"Conv", "Gemm", "MatMul", "FusedMatMul"})
# From a sum to its softmax: reshape, a mask, reshape (shifted windows).
_FAR = 5


class Full(Adapter):
    """See the module."""

    def exchange(self, node: ir.Node, inputs: list[ir.Value | None]) -> None:
        """Frozen operands become trainables; a tensor that several nodes read, one of all."""
        roles = _OPERANDS.get((node.domain, node.op_type))
        if roles is None:
            return
        if node.op_type == "Concat":
            roles = dict.fromkeys(range(len(inputs)), "weight")
        for index, role in roles.items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or value in self.bench.env or not _trains(node, value):
                continue
            inputs[index] = self.bench.env[value] = self._train(node, value, role)

    def _train(self, node: ir.Node, value: ir.Value, role: str) -> ir.Value:
        assert value.const_value is not None
        module, name = module_of(node), str(value.name)
        # What capture rearranged has a name that only the exporter knows.
        if FOLDED_KEY in value.metadata_props and is_anonymous(name):
            name = f"{module}.{role}"
        array = np.array(value.const_value.numpy(), np.float32)
        vector = _is_vector(array.shape)
        if role == "bias" and vector:
            kind = "norm_bias" if node.op_type in _NORMS else "bias"
        else:
            kind = "norm_weight" if node.op_type in _NORMS else "weight"
        return self.bench.train(name, array, kind, module,
                                decay=not vector and node.op_type in _DECAYING)


def _trains(node: ir.Node, value: ir.Value) -> bool:
    """Whether ``value`` is a parameter that ``node`` reads, not a mask or a table of a formula."""
    tensor = value.const_value
    if tensor is None or tensor.size < 2 or dtype_of(value) != ir.DataType.FLOAT:
        return False
    if value.metadata_props.get(FOLDED_KEY) == "computed":
        return False
    if node.op_type == "Mul":
        return _is_vector(shape_of(value))
    return _is_vector(shape_of(value)) or not adds_to_scores(node)


def _is_vector(shape: tuple[int, ...]) -> bool:
    return sum(d > 1 for d in shape) <= 1


def adds_to_scores(node: ir.Node) -> bool:
    """Whether ``node`` adds to what a softmax reads, as it is or reshaped and added to again."""
    if node.op_type != "Add":
        return False
    current = node
    for _ in range(_FAR):
        if current.op_type == "Softmax":
            return True
        readers = {use.node for use in current.outputs[0].uses()}
        if len(readers) != 1:
            return False
        current = readers.pop()
        if current.op_type not in ("Add", "Reshape", "Softmax"):
            return False
    return False
