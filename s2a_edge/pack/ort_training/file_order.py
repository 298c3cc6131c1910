"""The order of execution as data, for a runtime that does not take it from the file.

ONNX Runtime's default order is a reverse depth-first search from the outputs: it decodes a saved
value as soon as it has been coded, or keeps the value itself until the backward comes to its coder.
Python can ask for the order of the file (``PRIORITY_BASED``), the C interface and what is bound to
it cannot. So the order is written into the graph: each node that reads nothing of the node before
it gets one operand through

    Unsqueeze(operand, axes = Shape(output of the node before, start=0, end=0))

``Shape`` reads no data and gives no axes; ``Unsqueeze`` by no axes is the operand itself, in the
same memory. Both orders, and any other topological one, are then the file's. Graph optimizations
must be off: they would fold the shapes, which are static, and the order with them.
"""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, shape_of


def fix_order(model: ir.Model) -> int:
    """Chains the nodes of ``model``, in place; returns how many had to be.

    Every node but the last is then read by the next one, directly or through its shape.
    """
    graph = model.graph
    taken = {v.name for node in graph for v in node.outputs} | {n.name for n in graph}
    assert not any((name or "").startswith("after_") for name in taken), "names are taken"
    made = 0
    before: ir.Node | None = None
    for node in list(graph):
        if before is not None and before not in {v.producer() for v in node.inputs if v}:
            _put_behind(graph, node, before, made)
            made += 1
        before = node
    return made


def _put_behind(graph: ir.Graph, node: ir.Node, before: ir.Node, number: int) -> None:
    """``node`` waits for ``before``."""
    seen = next(v for v in before.outputs if v.name)
    place, operand = _operand(node)
    shape = ir.Node("", "Shape", [seen], [ir.AttrInt64("start", 0), ir.AttrInt64("end", 0)],
                    name=f"after_{number}_shape")
    none = shape.outputs[0]
    none.name, none.dtype, none.shape = f"after_{number}_axes", ir.DataType.INT64, ir.Shape([0])
    wait = ir.Node("", "Unsqueeze", [operand, none], name=f"after_{number}_wait")
    same = wait.outputs[0]
    same.name, same.dtype = f"after_{number}", dtype_of(operand)
    same.shape = ir.Shape(list(shape_of(operand)))
    graph.insert_before(node, [shape, wait])
    for index, value in enumerate(node.inputs):
        if value is operand and index >= place:
            node.replace_input_with(index, same)


def _operand(node: ir.Node) -> tuple[int, ir.Value]:
    """The operand to go through: computed data first, since kernels may look at constants."""
    given = [(i, v) for i, v in enumerate(node.inputs) if v is not None]
    computed = [(i, v) for i, v in given if v.producer() is not None]
    return (computed or given)[0]


__all__ = ["fix_order"]
