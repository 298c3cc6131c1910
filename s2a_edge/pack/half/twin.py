"""The float32 twin of a graph in half precision: the same numbers, on any CPU.

Every value that the graph has in half is in the twin a float32 that has been rounded to half and
back, and every node computes in float32. That is what kernels with float32 accumulators give, up to
the order of sums. ONNX Runtime's CPU provider has float16 kernels for few operators and bfloat16
ones for fewer, so tests, gradient errors and trial runs on a CPU use twins.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.emit import is_weight
from s2a_edge.pack.graph import dtype_of, module_of, shape_of
from s2a_edge.pack.half.formats import EXACT_IN_HALF, Half
from s2a_edge.pack.shape_inference import infer_outputs

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


class _Twin:
    """One model on its way. ``home``: float32 stand-ins; ``rounded``: the same still in half."""

    def __init__(self, model: ir.Model, half: Half) -> None:
        self.model, self.half = model, half
        graph = model.graph
        names = {name for node in graph for name in (node.name, *(v.name for v in node.outputs))}
        self.g = GraphBuilder(taken={*(n for n in names if n), *graph.initializers})
        self.home: dict[ir.Value, ir.Value] = {
            v: self.g.input(v.name or "", dtype_of(v), shape_of(v)) for v in graph.inputs}
        self.inputs = list(self.home.values())
        self.rounded: dict[ir.Value, ir.Value] = {}

    def run(self) -> ir.Model:
        graph = self.model.graph
        for value in graph.initializers.values():
            self._initializer(value)
        for node in graph:
            self.g.module = module_of(node)
            if (node.domain, node.op_type) == ("", "Cast"):
                self._cast(node)
            else:
                self._node(node)
        outputs = []
        for value in graph.outputs:
            made = self.home[value]
            made.name = value.name
            outputs.append(made)
        read = {*outputs, *(v for node in self.g.nodes for v in node.inputs)}
        kept: list[ir.Node] = []
        for node in reversed(self.g.nodes):
            if any(v in read for v in node.outputs):
                kept.append(node)
        self.g.nodes = kept[::-1]
        self.g.initializers = {n: v for n, v in self.g.initializers.items() if v in read}
        return model_of(self.inputs, outputs, self.g, graph.name or "graph")

    def _initializer(self, value: ir.Value) -> None:
        tensor = value.const_value
        assert tensor is not None
        copy = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor,
                        metadata_props=dict(value.metadata_props))
        if dtype_of(value) != self.half.dtype:
            self.home[value] = self.g.initializers[value.name or ""] = copy
        elif is_weight(value):  # cast where it is read
            self.rounded[value] = self.g.initializers[value.name or ""] = copy
        else:
            self.home[value] = self.g.constant(tensor.numpy().astype(np.float32))

    def _float(self, value: ir.Value) -> ir.Value:
        """What stands for an operand, in float32 if the operand is in half."""
        if value in self.home:
            return self.home[value]
        return self.g.op("Cast", self.rounded[value], name=f"{value.name}_as", to=int(_FLOAT))

    def _node(self, node: ir.Node) -> None:
        operands = [None if v is None else self._float(v) for v in node.inputs]
        made = ir.Node(node.domain, node.op_type, operands, list(node.attributes.values()),
                       num_outputs=len(node.outputs), name=node.name,
                       metadata_props=dict(node.metadata_props))
        exact = node.domain == "" and node.op_type in _EXACT
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name = old.name
            if not old.name:  # left out: nothing is inferred of it
                new.shape, new.type = old.shape, old.type
            new.metadata_props.update(old.metadata_props)
            self.home[old] = new
        infer_outputs(made)
        self.g.nodes.append(made)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            if old.name and not exact and dtype_of(old) == self.half.dtype:
                self._round(old, new)

    def _round(self, old: ir.Value, made: ir.Value) -> None:
        short = self.g.op("Cast", made, name=f"{old.name}_half", to=int(self.half.dtype))
        self.rounded[old] = short
        self.home[old] = self.g.op("Cast", short, name=f"{old.name}_rounded", to=int(_FLOAT))

    def _cast(self, node: ir.Node) -> None:
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
