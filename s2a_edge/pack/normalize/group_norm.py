"""GroupNorm spelled by exporters of old opsets becomes GroupNormalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.normalize.rewrite import (
    add_constant,
    array_of,
    insert,
    only_consumer,
    operands,
    producer,
    replace,
)


def fuse_group_norms(graph: ir.Graph) -> None:
    """Reshape to [N, groups, ..], a norm of each group, Reshape back [* weight] [+ bias].

    The norm in the middle is an InstanceNormalization of weight 1 and bias 0; as it was made a
    GroupNormalization before (``canonical``), it is one of as many groups as channels here.
    """
    for node in list(graph):
        if node.graph is not None and node.op_type == "GroupNormalization":
            _fuse(graph, node)


def _fuse(graph: ir.Graph, node: ir.Node) -> None:
    fold = producer(node.inputs[0], "Reshape")
    unfold = only_consumer(node.outputs[0])
    scale, bias = array_of(node.inputs[1]), array_of(node.inputs[2])
    if fold is None or unfold is None or unfold.op_type != "Reshape" or scale is None \
            or bias is None or not (scale == 1).all() or bias.any():
        return
    x, rows = fold.inputs[0], fold.inputs[0]
    assert x is not None and rows is not None
    dims, groups = shape_of(x), shape_of(fold.outputs[0])[1]
    if len(dims) < 3 or shape_of(unfold.outputs[0]) != dims or dims[1] % groups \
            or shape_of(fold.outputs[0])[0] != dims[0] \
            or node.attributes.get_int("num_groups", 0) != groups:
        return
    last = unfold
    weight, offset = np.ones(dims[1], np.float32), np.zeros(dims[1], np.float32)
    names = [f"{module_of(unfold)}.{role}" for role in ("weight", "bias")]
    for index, op_type in enumerate(("Mul", "Add")):
        found = _per_channel(last, op_type, dims)
        if found is not None:
            last, value = found
            array = array_of(value)
            assert array is not None
            names[index] = str(value.name)
            if index:
                offset = array.reshape(-1)
            else:
                weight = array.reshape(-1)
    inputs: list[ir.Value | None] = [x, add_constant(graph, f"{names[0]}_channels", weight),
                                     add_constant(graph, f"{names[1]}_channels", offset)]
    new = insert(graph, last, "GroupNormalization", inputs, {
        "num_groups": groups, "epsilon": node.attributes.get_float("epsilon", 1e-5)},
        name=f"{last.outputs[0].name}_fused")
    replace(graph, last.outputs[0], new)
    for made, name in zip(inputs[1:], names, strict=True):
        assert made is not None
        if name not in graph.initializers or not graph.initializers[name].uses():
            graph.initializers.pop(name, None)
            made.name = name


def _per_channel(node: ir.Node, op_type: str, dims: tuple[int, ...],
                 ) -> tuple[ir.Node, ir.Value] | None:
    """The only reader of ``node``, if it is ``op_type`` with a constant [C, 1, ...]."""
    out = node.outputs[0]
    after = only_consumer(out)
    if after is None or after.op_type != op_type:
        return None
    a, b = operands(after)
    constant = b if a is out else a
    if constant.const_value is None:
        return None
    shape = shape_of(constant)
    wanted = (dims[1], *[1] * (len(dims) - 2))
    return (after, constant) if shape in (wanted, (1, *wanted)) else None
