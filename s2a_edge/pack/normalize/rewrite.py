"""Small steps of graph surgery, shared by the rewrites of this package.

A replaced value passes its name on, so that a value keeps the name its exporter gave it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.shape_inference import infer_outputs


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The data of a constant, without a copy; None for a computed value."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    """The number in a constant of one element; None for anything else."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes ``value``, if it is one of ``op_types``."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``; None where several do, or it is a graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def operands(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Both inputs of a binary node."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    return a, b


def split_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The computed operand and the constant scalar of a commutative binary node."""
    a, b = operands(node)
    for x, c in ((a, b), (b, a)):
        number = scalar_of(c)
        if number is not None and x.const_value is None:
            return x, number
    return None


def insert(graph: ir.Graph, anchor: ir.Node, op_type: str, inputs: list[ir.Value | None],
           attributes: dict[str, object] | None = None, *, name: str, domain: str = "",
           ) -> ir.Value:
    """Inserts a node before ``anchor``, with the module of ``anchor``; returns its output."""
    node = ir.Node(domain, op_type, inputs,
                   ir.convenience.convert_attributes(attributes or {}),  # type: ignore[arg-type]  # plain Python attribute values
                   name=f"{name}_node", metadata_props=dict(anchor.metadata_props))
    node.outputs[0].name = name
    infer_outputs(node)
    graph.insert_before(anchor, node)
    return node.outputs[0]


def replace(graph: ir.Graph, old: ir.Value, new: ir.Value, *, keep_name: bool = True) -> None:
    """Redirects every use of ``old`` to ``new`` and removes what only ``old`` needed."""
    node = old.producer()
    assert node is not None
    if (keep_name or old.is_graph_output()) and new.producer() is not None:
        name, old.name = old.name, None
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    remove_dead(graph, node)


def remove_dead(graph: ir.Graph, node: ir.Node) -> None:
    """Removes ``node`` if nothing reads it, and then what only it read."""
    if any(v.uses() or v.is_graph_output() for v in node.outputs):
        return
    before = [v.producer() for v in node.inputs if v is not None]
    graph.remove(node, safe=True)
    for earlier in before:
        if earlier is not None and earlier.graph is graph:
            remove_dead(graph, earlier)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer under ``name``, or a free name made from it; a view stays a view."""
    return add_tensor(graph, name, ir.tensor(array, name=name))


def add_tensor(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """As :func:`add_constant`, for data that is a tensor already."""
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    value = ir.Value(name=free, type=ir.TensorType(tensor.dtype),
                     shape=ir.Shape([int(d) for d in tensor.shape.numpy()]), const_value=tensor)
    graph.register_initializer(value)
    return value
