"""Every bias of an affine operator trains; where one has none, a zero one is added.

So every channel can move (S2A, arXiv 2503.08154; BitFit, arXiv 2106.10199). The gradient of a bias
is the gradient of its operator's output: nothing is saved for it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapters.adapter import Adapter, AdapterSizes
from s2a_edge.pack.adapters.affine import is_affine, is_channel_vector, is_linear
from s2a_edge.pack.adapters.workbench import Workbench
from s2a_edge.pack.graph import module_of, shape_of

# The position of the bias among the inputs of operators that carry one.
_BIAS_INPUT = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "LayerNormalization": 2,
               "BatchNormalization": 2, "GroupNormalization": 2}
_NORMS = ("LayerNormalization", "BatchNormalization", "GroupNormalization", "RMSNormalization")


class Bias(Adapter):
    """See the module."""

    def __init__(self, bench: Workbench, sizes: AdapterSizes) -> None:
        super().__init__(bench, sizes)
        self._bias_adds: dict[ir.Node, int] = {}
        self._to_add: ir.Value | None = None

    def exchange(self, node: ir.Node, inputs: list[ir.Value | None]) -> None:
        """The bias operand becomes a trainable; one behind a product is remembered."""
        self._to_add = None
        position = _bias_position(node)
        if position is not None:
            inputs += [None] * (position + 1 - len(inputs))
        if node in self._bias_adds:
            index = self._bias_adds[node]
            inputs[index] = self._bias(node, inputs[index])
        elif position is not None and (inputs[position] is not None
                                       or not self._bias_behind(node)):
            inputs[position] = self._bias(node, inputs[position])
        elif position is None and is_affine(node) and not self._bias_behind(node):
            self._to_add = self._bias(node, None)

    def behind(self, node: ir.Node, x: ir.Value | None, y: ir.Value) -> ir.Value:
        """The sum with a bias that has no place in the operator."""
        return y if self._to_add is None else self.bench.g.op("Add", y, self._to_add)

    def _bias_behind(self, node: ir.Node) -> bool:
        """Whether the only reader of ``node`` adds a frozen vector; remembers that reader."""
        uses = list(node.outputs[0].uses())
        if not is_linear(node) or len(uses) != 1 or uses[0].node.op_type != "Add":
            return False
        other = 1 - uses[0].idx
        bias = uses[0].node.inputs[other]
        if (bias is None or bias.const_value is None
                or not is_channel_vector(shape_of(bias), shape_of(node.outputs[0])[-1])):
            return False
        self._bias_adds[uses[0].node] = other
        return True

    def _bias(self, node: ir.Node, frozen: ir.Value | None) -> ir.Value:
        module = module_of(node)
        if frozen is not None and frozen.const_value is not None:
            name, array = frozen.name or f"{module}.bias", frozen.const_value.numpy()
        else:
            name, array = f"{module}.bias", np.zeros(_bias_width(node), np.float32)
        kind = "norm_bias" if node.op_type in _NORMS else "bias"
        return self.bench.train(name, np.array(array, np.float32), kind, module, decay=False)


def _bias_position(node: ir.Node) -> int | None:
    """The operand that is the bias of an affine operator, there or not; None: it has no place.

    What a Gemm adds may be anything: a residual, a scalar. Then the bias comes behind it.
    """
    position = _BIAS_INPUT.get(node.op_type) if node.domain == "" else None
    if position is None:
        return None
    present = node.inputs[position] if position < len(node.inputs) else None
    if node.op_type == "Gemm":
        if not is_linear(node) or (present is None
                                   and node.attributes.get_float("beta", 1.0) != 1.0):
            return None
        if present is not None and not is_channel_vector(shape_of(present),
                                                         shape_of(node.outputs[0])[-1]):
            return None
    return None if present is not None and present.const_value is None else position


def _bias_width(node: ir.Node) -> tuple[int, ...]:
    shape = shape_of(node.outputs[0])
    if node.op_type in ("Conv", "ConvTranspose", "BatchNormalization", "GroupNormalization"):
        return (shape[1],)
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get_int("axis", -1)
        return shape[axis:]
    return (shape[-1],)
