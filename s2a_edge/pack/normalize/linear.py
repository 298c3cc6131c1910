"""Linear layers in one form: MatMul(x, weight [K, N]), then Add(., bias [N])."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize.rewrite import add_constant, array_of, operands, producer


def order_biases(graph: ir.Graph) -> None:
    """Add(bias, MatMul) -> Add(MatMul, bias), and bias [1, ..., N] -> [N].

    The same for biases of any other Add and for scales of Mul: a constant that is
    one-dimensional but for ones becomes [N] if it lies along the last axis.
    """
    for node in graph:
        if node.op_type not in ("Add", "Mul"):
            continue
        a, b = operands(node)
        if a.const_value is not None and b.const_value is None:
            node.replace_input_with(0, b)
            node.replace_input_with(1, a)
            a, b = b, a
        if b.const_value is None or a.const_value is not None:
            continue
        dims = shape_of(b)
        if len(dims) > 1 and dims[-1] > 1 and all(d == 1 for d in dims[:-1]) and len(dims) <= len(
                shape_of(a)):
            array = array_of(b)
            assert array is not None
            name = str(b.name)
            flat = add_constant(graph, f"{name}_flat", array.reshape(-1))
            node.replace_input_with(1, flat)
            if not b.uses():
                del graph.initializers[name]
                flat.name = name


def is_linear_bias(node: ir.Node) -> bool:
    """Whether ``node`` adds a constant [N] to a product with a frozen weight [K, N]."""
    if node.op_type != "Add":
        return False
    x, bias = operands(node)
    product = producer(x, "MatMul")
    return (product is not None and product.inputs[1] is not None
            and product.inputs[1].const_value is not None and bias.const_value is not None
            and len(shape_of(bias)) == 1)
