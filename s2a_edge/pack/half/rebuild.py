"""A model made again node by node, as the passes between float32 and half precision do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.copies import copy_initializer, copy_node
from s2a_edge.pack.graph import dtype_of, leading_to, module_of, shape_of
from s2a_edge.pack.shape_inference import infer_outputs


class Rebuild(ABC):
    """One model on its way; inputs and outputs keep their names.

    Args:
        model: of static shapes.

    Attributes:
        g: the graph under construction.
        home: what stands for a value of the old graph.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        graph = model.graph
        names = {name for node in graph for name in (node.name, *(v.name for v in node.outputs))}
        self.g = GraphBuilder(taken={*(n for n in names if n), *graph.initializers})
        self.home: dict[ir.Value, ir.Value] = {
            v: self.g.input(v.name or "", dtype_of(v), shape_of(v)) for v in graph.inputs}
        self._inputs = list(self.home.values())

    def run(self) -> ir.Model:
        """The new model, without nodes and constants that nobody reads."""
        graph = self.model.graph
        for value in graph.initializers.values():
            self.initializer(value)
        for node in graph:
            self.g.module = module_of(node)
            if (node.domain, node.op_type) == ("", "Cast"):
                self.cast(node)
            else:
                self.node(node)
        outputs = [self.output(value) for value in graph.outputs]
        self._drop_unread(outputs)
        return model_of(self._inputs, outputs, self.g, graph.name or "graph")

    def initializer(self, value: ir.Value) -> None:
        """Brings an initializer over."""
        self.home[value] = self.same_initializer(value)

    @abstractmethod
    def node(self, node: ir.Node) -> None:
        """Brings a node over that is no Cast."""

    @abstractmethod
    def cast(self, node: ir.Node) -> None:
        """Brings a Cast over: from what is there, and not to what is there already."""

    def output(self, value: ir.Value) -> ir.Value:
        """What stands for an output, under its name."""
        made = self.home[value]
        made.name = value.name
        return made

    def same_initializer(self, value: ir.Value) -> ir.Value:
        """A copy of an initializer, in the new graph."""
        made = self.g.initializers[value.name or ""] = copy_initializer(value)
        return made

    def append(self, node: ir.Node, operands: list[ir.Value | None]) -> ir.Node:
        """A copy of ``node`` that reads ``operands``; ONNX's schemas say what type it gives."""
        made = copy_node(node, operands)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.metadata_props.update(old.metadata_props)
            self.home[old] = new
        infer_outputs(made)
        self.g.nodes.append(made)
        return made

    def _drop_unread(self, outputs: list[ir.Value]) -> None:
        needed = leading_to(self.g.nodes, outputs)
        self.g.nodes = [node for node in self.g.nodes if node in needed]
        read = {*outputs, *(v for node in needed for v in node.inputs)}
        self.g.initializers = {n: v for n, v in self.g.initializers.items() if v in read}


__all__ = ["Rebuild"]
