"""The float32 twin of a graph in half precision: the same numbers, on any CPU.

Every value that the graph has in half is in the twin a float32 that has been rounded to half and
back, and every node computes in float32. That is what kernels with float32 accumulators give, up to
the order of sums. ONNX Runtime's CPU provider has float16 kernels for few operators and bfloat16
ones for fewer, so tests, gradient errors and trial runs on a CPU use twins.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.emit import is_weight
from s2a_edge.pack.graph import dtype_of
from s2a_edge.pack.half.formats import EXACT_IN_HALF, Half
from s2a_edge.pack.half.rebuild import Rebuild

_FLOAT = ir.DataType.FLOAT
# What they give is one of their operands' numbers, or an exact function of one.
_EXACT = frozenset({
    "Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax",
    "ReduceMin", "Relu", "Reshape", "ScatterElements", "ScatterND", "Sign", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip


def float32_twin(model: ir.Model, half: Half) -> ir.Model:
    """A graph that computes in float32 what ``model`` computes in ``half``.

    Inputs, outputs and weights are those of ``model``; nothing of its memory is.
    """
    return _Twin(model, half).run()


class _Twin(Rebuild):
    """``home`` has float32 stand-ins; ``rounded`` the same still in half."""

    def __init__(self, model: ir.Model, half: Half) -> None:
        super().__init__(model)
        self.half = half
        self.rounded: dict[ir.Value, ir.Value] = {}

    def initializer(self, value: ir.Value) -> None:
        if dtype_of(value) != self.half.dtype:
            self.home[value] = self.same_initializer(value)
        elif is_weight(value):  # cast where it is read
            self.rounded[value] = self.same_initializer(value)
        else:
            assert value.const_value is not None
            self.home[value] = self.g.constant(value.const_value.numpy().astype(np.float32))

    def _float(self, value: ir.Value) -> ir.Value:
        """What stands for an operand, in float32 if the operand is in half."""
        if value in self.home:
            return self.home[value]
        return self.g.op("Cast", self.rounded[value], name=f"{value.name}_as", to=int(_FLOAT))

    def node(self, node: ir.Node) -> None:
        made = self.append(node, [None if v is None else self._float(v) for v in node.inputs])
        exact = node.domain == "" and node.op_type in _EXACT
        for old, new in zip(node.outputs, made.outputs, strict=True):
            if old.name and not exact and dtype_of(old) == self.half.dtype:
                self._round(old, new)

    def _round(self, old: ir.Value, made: ir.Value) -> None:
        short = self.g.op("Cast", made, name=f"{old.name}_half", to=int(self.half.dtype))
        self.rounded[old] = short
        self.home[old] = self.g.op("Cast", short, name=f"{old.name}_rounded", to=int(_FLOAT))

    def cast(self, node: ir.Node) -> None:
        value, result = node.inputs[0], node.outputs[0]
        assert value is not None
        to = dtype_of(result)
        if dtype_of(value) == self.half.dtype and to == _FLOAT:
            self.home[result] = self._float(value)
            return
        # A value that was just rounded is read as it was then: of a Cast that only Casts read,
        # the runtime drops the one that loses nothing.
        source = self.rounded.get(value) or self._float(value)
        if to == self.half.dtype:
            if dtype_of(source) == _FLOAT or dtype_of(source) not in EXACT_IN_HALF:
                self._round(result, source)
            else:
                self.home[result] = self.g.op("Cast", source, name=result.name, to=int(_FLOAT))
            return
        made = self.g.op("Cast", source, to=int(to))
        made.name = result.name
        made.metadata_props.update(result.metadata_props)
        self.home[result] = made


__all__ = ["float32_twin"]
