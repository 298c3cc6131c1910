"""Copying an adapted graph, node by node, into a graph under construction."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.copies import copy_initializer, copy_node, step_marks
from s2a_edge.pack.graph import dtype_of, shape_of


class Environment:
    """Maps the values of an adapted graph to those of the graph under construction."""

    def __init__(self, inputs: Iterable[ir.Value], g: GraphBuilder) -> None:
        self.g = g
        self._map: dict[ir.Value, ir.Value] = {}
        for value in inputs:
            self._map[value] = g.input(value.name or "", dtype_of(value), shape_of(value))

    def enter(self, value: ir.Value) -> ir.Value:
        """The counterpart of ``value``; frozen initializers come over when first used."""
        if value not in self._map:
            assert value.const_value is not None, f"{value.name} is used before it is made"
            copy = copy_initializer(value)
            assert value.name not in self.g.initializers, f"two tensors named {value.name}"
            self.g.initializers[value.name or ""] = copy
            self._map[value] = copy
        return self._map[value]

    def bind(self, value: ir.Value, made: ir.Value) -> None:
        """Says which value stands for ``value`` from here on."""
        self._map[value] = made

    def inputs(self, node: ir.Node) -> tuple[ir.Value | None, ...]:
        """The counterparts of a node's operands."""
        return tuple(None if v is None else self.enter(v) for v in node.inputs)

    def clone(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Appends a copy of ``node`` under its own names."""
        copy = copy_node(node, self.inputs(node), marks=step_marks(node))
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            self.bind(old, new)
        self.g.adopt(copy)
        return tuple(copy.outputs)


__all__ = ["Environment"]
