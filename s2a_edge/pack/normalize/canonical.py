"""Operators that are others in disguise: each becomes the one that the later stages know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.normalize.rewrite import add_constant, array_of, insert, replace

_LEAST_NORM = 1e-30  # of LpNormalization: a row of zeros stays zero


def spell_canonically(graph: ir.Graph) -> None:
    """Global pools -> reductions, InstanceNormalization -> GroupNormalization, and the like."""
    for node in list(graph):
        rewrite = _REWRITES.get(node.op_type) if node.domain == "" else None
        new = rewrite(graph, node) if rewrite is not None else None
        if new is not None:
            replace(graph, node.outputs[0], new)


def _reduce(graph: ir.Graph, node: ir.Node, op_type: str, axes: list[int], keepdims: int = 1,
            ) -> ir.Value:
    name = str(node.outputs[0].name)
    axes_value = add_constant(graph, f"{name}_axes", np.asarray(axes, np.int64))
    return insert(graph, node, op_type, [node.inputs[0], axes_value], {"keepdims": keepdims},
                  name=f"{name}_reduced")


def _rank(node: ir.Node) -> int:
    x = node.inputs[0]
    assert x is not None
    return len(shape_of(x))


def _global_max_pool(graph: ir.Graph, node: ir.Node) -> ir.Value:
    return _reduce(graph, node, "ReduceMax", list(range(2, _rank(node))))


def _global_lp_pool(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    order = node.attributes.get_int("p", 2)
    if order not in (1, 2):
        return None
    return _reduce(graph, node, f"ReduceL{order}", list(range(2, _rank(node))))


def _lp_normalization(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    # y = x / |x|₁ along an axis; of |x|₂ there is a rule
    order = node.attributes.get_int("p", 2)
    if order != 1:
        return None
    axis = node.attributes.get_int("axis", -1) % _rank(node)
    norm = _reduce(graph, node, f"ReduceL{order}", [axis])
    name = str(node.outputs[0].name)
    least = add_constant(graph, f"{name}_least", np.asarray(_LEAST_NORM,
                                                            dtype_of(norm).numpy()))
    divisor = insert(graph, node, "Clip", [norm, least], name=f"{name}_norm")
    return insert(graph, node, "Div", [node.inputs[0], divisor], name=f"{name}_unit")


def _reduce_log_sum(graph: ir.Graph, node: ir.Node) -> ir.Value:
    name = str(node.outputs[0].name)
    attributes: dict[str, object] = {k: a.value for k, a in node.attributes.items()}
    total = insert(graph, node, "ReduceSum", list(node.inputs), attributes, name=f"{name}_sum")
    return insert(graph, node, "Log", [total], name=f"{name}_log")


def _instance_normalization(graph: ir.Graph, node: ir.Node) -> ir.Value:
    # Each channel is a group of its own.
    scale = node.inputs[1]
    assert scale is not None
    return insert(graph, node, "GroupNormalization", list(node.inputs), {
        "num_groups": shape_of(scale)[0],
        "epsilon": node.attributes.get_float("epsilon", 1e-5)},
        name=f"{node.outputs[0].name}_groups")


def _gather_nd(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """Constant positions over the leading axes: a Gather of rows of those axes as one."""
    x, positions = node.inputs[0], array_of(node.inputs[1])
    if x is None or positions is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    dims, depth, name = shape_of(x), positions.shape[-1], str(node.outputs[0].name)
    leading = dims[:depth]
    wrapped = [positions[..., i] % leading[i] for i in range(depth)]
    rows = np.ravel_multi_index(wrapped, leading).astype(np.int64)
    shape = add_constant(graph, f"{name}_rows", np.asarray(
        [int(np.prod(leading)), *dims[depth:]], np.int64))
    flat = insert(graph, node, "Reshape", [x, shape], name=f"{name}_flat")
    index = add_constant(graph, f"{name}_index", rows)
    return insert(graph, node, "Gather", [flat, index], {"axis": 0}, name=f"{name}_gathered")


_REWRITES: dict[str, Callable[[ir.Graph, ir.Node], ir.Value | None]] = {
    "GlobalMaxPool": _global_max_pool, "GlobalLpPool": _global_lp_pool,
    "LpNormalization": _lp_normalization, "ReduceLogSum": _reduce_log_sum,
    "InstanceNormalization": _instance_normalization, "GatherND": _gather_nd,
}
