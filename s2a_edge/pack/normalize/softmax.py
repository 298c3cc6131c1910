"""Softmax in its own shape: what converters of old opsets flatten around it goes away."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize.rewrite import insert, only_consumer, producer, replace


def unflatten_softmax(graph: ir.Graph) -> None:
    """Reshape to [rows, T] -> Softmax over T -> Reshape back to [.., T]: the Softmax alone.

    Before opset 13, softmax took its operand for a matrix; its conversion says so with Reshapes,
    in which attention would not be recognised.
    """
    for node in list(graph):
        if node.graph is None or node.op_type not in ("Softmax", "LogSoftmax"):
            continue
        flat = producer(node.inputs[0], "Reshape")
        back = only_consumer(node.outputs[0])
        if flat is None or back is None or back.op_type != "Reshape":
            continue
        x = flat.inputs[0]
        assert x is not None
        rows = shape_of(node.outputs[0])
        last = node.attributes.get_int("axis", -1) in (-1, len(rows) - 1)
        if last and shape_of(x)[-1] == rows[-1] and shape_of(back.outputs[0]) == shape_of(x):
            new = insert(graph, back, node.op_type, [x], {"axis": -1},
                         name=f"{back.outputs[0].name}_rows")
            replace(graph, back.outputs[0], new)
