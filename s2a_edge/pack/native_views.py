"""Reshapes around kernels in C: such a kernel sees memory, and what shape it makes is an attribute.

A node takes some 5 KiB of a session, a Reshape as much as any.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from s2a_edge.pack.graph import KIND_KEY, shape_of
from s2a_edge.pack.merge_views import drop_unread, is_view
from s2a_edge.pack.native_ops import NATIVE_DOMAIN, infer_native

# Whose `shape` decides nothing else: their other outputs' shapes follow from sizes alone.
_FREE = frozenset({"UnpackWords", "UnpackTimes", "UnpackColumns", "DequantizeRows", "GeluWords",
                   "Add3", "Add4", "Add5", "SoftmaxGradient", "LayerNormGradient"})
_ENDS_IN_ROWS = frozenset({"LayerNorm"})  # the last axis is the one that is normalized


def merge_native_views(model: ir.Model) -> None:
    """Lets kernels in C read what Reshapes are of, and make what Reshapes make of it.

    Values keep their buffers, as in :func:`s2a_edge.pack.merge_views.merge_views`.
    """
    graph = model.graph
    for node in graph:
        if node.domain == NATIVE_DOMAIN:
            for index in range(len(node.inputs)):
                _read_below(node, index)
    drop_unread(model)
    for node in graph:
        if node.domain == NATIVE_DOMAIN:
            _make_reshaped(node, graph.outputs)
    drop_unread(model)


def _read_below(node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    while value is not None and (view := value.producer()) is not None and is_view(view):
        source = view.inputs[0]
        if source is None or _kind(value) != _kind(source):
            return
        node.replace_input_with(index, source)
        value = source


def _make_reshaped(node: ir.Node, outputs: Sequence[ir.Value]) -> None:
    """Gives the results of ``node`` the shape that all who mind it want."""
    count = {"LayerNorm": 2}.get(node.op_type, 1)  # outputs that have the attribute's shape
    made = node.outputs[:count]
    views = [use.node for value in made for use in value.uses()
             if use.node.domain != NATIVE_DOMAIN]
    shapes = {shape_of(view.outputs[0]) for view in views}
    if (node.op_type not in _FREE | _ENDS_IN_ROWS or len(shapes) != 1
            or not all(is_view(view) for view in views) or any(v in outputs for v in made)
            or any(_kind(view.outputs[0]) != _kind(view.inputs[0]) for view in views)):
        return
    (shape,) = shapes
    if node.op_type in _ENDS_IN_ROWS and shape[-1] != shape_of(made[0])[-1]:
        return
    if any(use.node.domain != NATIVE_DOMAIN for v in node.outputs[count:] for use in v.uses()):
        return
    node.attributes["shape"] = ir.AttrInt64s("shape", list(shape))
    infer_native(node)
    for view in views:
        (value,) = (v for v in made if v is view.inputs[0])
        if any(v in outputs for v in view.outputs):
            continue
        for use in tuple(view.outputs[0].uses()):
            use.node.replace_input_with(use.idx, value)


def _kind(value: ir.Value | None) -> str | None:
    return None if value is None else value.metadata_props.get(KIND_KEY)


__all__ = ["merge_native_views"]
