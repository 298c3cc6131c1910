"""Views of views are views of what lies below: one node less each, and 4 KiB of session."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import KIND_KEY


def merge_views(model: ir.Model) -> None:
    """Lets every Reshape of a Reshape read the latter's operand; drops those nobody reads then.

    All of them share one buffer, so lifetimes stay as they were. What a value is for is told by
    its buffer's values: a view that says more than the value it is of is kept.
    """
    graph = model.graph
    for node in graph:
        view = node.inputs[0] if is_view(node) else None
        below = view.producer() if view is not None else None
        if view is None or below is None or not is_view(below):
            continue
        source = below.inputs[0]
        if source is not None and view.metadata_props.get(KIND_KEY) == source.metadata_props.get(
                KIND_KEY):
            node.replace_input_with(0, source)
    drop_unread(model)


def drop_unread(model: ir.Model) -> None:
    """Drops views that nobody reads, and constants that nobody reads then."""
    graph, outputs = model.graph, set(model.graph.outputs)
    while unread := [n for n in graph if is_view(n) and not n.outputs[0].uses()
                     and n.outputs[0] not in outputs]:
        graph.remove(unread, safe=True)
    for name in [n for n, v in graph.initializers.items() if not v.uses() and v not in outputs]:
        del graph.initializers[name]


def is_view(node: ir.Node) -> bool:
    """A Reshape to a shape without zeros or -1, which would mean another shape elsewhere."""
    shape = node.inputs[1] if node.op_type == "Reshape" and not node.domain else None
    return (shape is not None and shape.const_value is not None
            and bool((shape.const_value.numpy() > 0).all()))


__all__ = ["drop_unread", "is_view", "merge_views"]
