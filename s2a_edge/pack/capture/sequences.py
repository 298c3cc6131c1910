"""Sequences of tensors taken apart: what exporters emit for ``split``, ``chunk`` and ``unbind``.

ONNX has a type for lists of tensors. With static shapes a list is known element by element, so no
such value is left: SplitToSequence and SequenceAt become one Split, ConcatFromSequence a Concat.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.shape_inference import infer_outputs
from s2a_edge.spec.errors import SourceError


class Sequences:
    """The lists of one graph, resolved while its nodes are visited in topological order."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._items: dict[ir.Value, list[ir.Value]] = {}

    def resolve(self, node: ir.Node) -> bool:
        """Replaces ``node`` if it makes or reads a list; False if it does neither.

        Nodes that make a list stay, unread.

        Raises:
            SourceError: if which element is read, or how many there are, depends on data.
        """
        if node.op_type == "SplitToSequence":
            self._items[node.outputs[0]] = self._split(node)
        elif node.op_type == "SequenceConstruct":
            self._items[node.outputs[0]] = [v for v in node.inputs if v is not None]
        elif node.op_type == "SequenceAt":
            items = self._of(node)
            self._replace(node, items[int(_constant(node, 1).reshape(()))])
        elif node.op_type == "ConcatFromSequence":
            self._replace(node, self._concat(node))
        else:
            return False
        return True

    def _of(self, node: ir.Node) -> list[ir.Value]:
        source = node.inputs[0]
        if source is None or source not in self._items:
            raise _unknown(node)
        return self._items[source]

    def _split(self, node: ir.Node) -> list[ir.Value]:
        x = node.inputs[0]
        assert x is not None
        axis = node.attributes.get_int("axis", 0) % len(shape_of(x))
        sizes = self._sizes(node, shape_of(x)[axis])
        name = str(node.outputs[0].name)
        parts = self._insert(node, "Split", [x, self._constant(f"{name}_sizes", sizes)],
                             {"axis": axis}, [f"{name}_part{i}" for i in range(len(sizes))])
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            return parts  # pieces of a given size keep their axis
        if node.attributes.get_int("keepdims", 1):
            return parts
        axes = self._constant(f"{name}_axis", [axis])
        return [self._insert(node, "Squeeze", [part, axes], {}, [f"{part.name}_item"])[0]
                for part in parts]

    def _sizes(self, node: ir.Node, length: int) -> list[int]:
        if len(node.inputs) < 2 or node.inputs[1] is None:
            return [1] * length
        split = _constant(node, 1)
        if split.ndim:
            return [int(n) for n in split]
        size = int(split)
        return [min(size, length - start) for start in range(0, length, size)]

    def _concat(self, node: ir.Node) -> ir.Value:
        axis, items = node.attributes.get_int("axis", 0), self._of(node)
        name = str(node.outputs[0].name)
        if node.attributes.get_int("new_axis", 0):
            axes = self._constant(f"{name}_axis", [axis])
            items = [self._insert(node, "Unsqueeze", [v, axes], {}, [f"{name}_item{i}"])[0]
                     for i, v in enumerate(items)]
        return self._insert(node, "Concat", list(items), {"axis": axis}, [f"{name}_whole"])[0]

    def _insert(self, anchor: ir.Node, op_type: str, inputs: list[ir.Value],
                attributes: dict[str, int], names: list[str]) -> list[ir.Value]:
        node = ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes),
                       num_outputs=len(names), name=f"{names[0]}_{op_type}",
                       metadata_props=dict(anchor.metadata_props))
        for value, name in zip(node.outputs, names, strict=True):
            value.name = name
        infer_outputs(node)
        self._graph.insert_before(anchor, node)
        return list(node.outputs)

    def _constant(self, name: str, numbers: list[int]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64),
                         shape=ir.Shape([len(numbers)]),
                         const_value=ir.tensor(np.asarray(numbers, np.int64), name=name))
        self._graph.register_initializer(value)
        return value

    def _replace(self, node: ir.Node, new: ir.Value) -> None:
        old = node.outputs[0]
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)


def _constant(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise _unknown(node)
    return value.const_value.numpy()


def _unknown(node: ir.Node) -> SourceError:
    return SourceError(where=f"{node.op_type} {node.name} in {module_of(node)}",
                       expected="a list whose length and elements follow from the input's shape",
                       got="one that depends on the data",
                       todo="cut the graph before it with --features")


__all__ = ["Sequences"]
