"""Losses inside a graph, spelled in operators that can be differentiated and cannot overflow.

``SoftmaxCrossEntropyLoss`` and ``NegativeLogLikelihoodLoss`` become a product with one-hot rows;
``Log(Sigmoid(x))``, which is ``-inf`` for a large negative x, becomes ``-Softplus(-x)``, and
``Log(Softmax(x))`` becomes ``LogSoftmax(x)``. Exporters write all of these.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.normalize.rewrite import add_constant, array_of, insert, producer, replace

_CLASS_LOSSES = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")


def spell_out_losses(graph: ir.Graph) -> None:
    """Rewrites every loss operator and every logarithm of a sigmoid or softmax, in place."""
    for node in list(graph):
        if node.graph is None or node.domain:
            continue
        if node.op_type in _CLASS_LOSSES:
            _class_loss(graph, node)
        elif node.op_type == "Log":
            _logarithm(graph, node)


def _class_loss(graph: ir.Graph, node: ir.Node) -> None:
    """``Σ -w_y log p_y``, over ``Σ w_y`` for a mean, as ONNX defines it.

    Scores are [N, C, d1, ...], classes [N, d1, ...]; the axis of the classes is 1.
    """
    name = str(node.outputs[0].name)
    scores, labels = node.inputs[0], node.inputs[1]
    assert scores is not None and labels is not None
    log_p: ir.Value = scores
    if node.op_type == "SoftmaxCrossEntropyLoss":
        log_p = insert(graph, node, "LogSoftmax", [scores], {"axis": 1}, name=f"{name}_log_p")
        if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
            node.outputs[1].replace_all_uses_with(log_p, replace_graph_outputs=True)
    weight = _weight_of_entries(graph, node, labels, shape_of(scores))
    terms = insert(graph, node, "Mul", [log_p, weight], name=f"{name}_terms")
    reduction = node.attributes.get_string("reduction", "mean")
    if reduction == "none":
        summed = _sum(graph, node, terms, [1], f"{name}_sum")
        replace(graph, node.outputs[0], insert(graph, node, "Neg", [summed], name=f"{name}_each"))
        return
    axes = list(range(len(shape_of(scores))))
    result = insert(graph, node, "Neg", [_sum(graph, node, terms, axes, f"{name}_sum")],
                    name=f"{name}_total")
    if reduction == "mean":
        mass = _sum(graph, node, weight, axes, f"{name}_mass")
        result = insert(graph, node, "Div", [result, mass], name=f"{name}_mean")
    replace(graph, node.outputs[0], result)


def _weight_of_entries(graph: ir.Graph, node: ir.Node, labels: ir.Value, shape: tuple[int, ...],
                       ) -> ir.Value:
    """[N, C, ...]: the weight of its class where a sample is of it, else 0.

    An ignored label, and any outside 0..C-1, matches no class.
    """
    name, dtype = str(node.outputs[0].name), dtype_of(node.inputs[0])  # type: ignore[arg-type]  # scores exist
    column = [1, shape[1], *[1] * (len(shape) - 2)]
    classes = add_constant(graph, f"{name}_classes", np.arange(
        shape[1], dtype=dtype_of(labels).numpy()).reshape(column))
    axis = add_constant(graph, f"{name}_class_axis", np.array([1], np.int64))
    column_labels = insert(graph, node, "Unsqueeze", [labels, axis], name=f"{name}_labels")
    hit = insert(graph, node, "Equal", [column_labels, classes], name=f"{name}_hit")
    one_hot = insert(graph, node, "Cast", [hit], {"to": int(dtype)}, name=f"{name}_one_hot")
    ignored = node.attributes.get_int("ignore_index", -1)
    by_class = node.inputs[2] if len(node.inputs) > 2 else None
    if by_class is None and not 0 <= ignored < shape[1]:
        return one_hot
    factor = np.ones(shape[1], dtype.numpy())
    if 0 <= ignored < shape[1]:
        factor[ignored] = 0
    given = array_of(by_class)
    if by_class is not None and given is None:
        target = add_constant(graph, f"{name}_column", np.asarray(column, np.int64))
        by_class = insert(graph, node, "Reshape", [by_class, target], name=f"{name}_by_class")
        one_hot = insert(graph, node, "Mul", [one_hot, by_class], name=f"{name}_weighed")
    elif given is not None:
        factor = factor * given
    weights = add_constant(graph, f"{name}_weights", factor.reshape(column))
    return insert(graph, node, "Mul", [one_hot, weights], name=f"{name}_weight")


def _sum(graph: ir.Graph, node: ir.Node, value: ir.Value, axes: list[int], name: str) -> ir.Value:
    over = add_constant(graph, f"{name}_axes", np.asarray(axes, np.int64))
    return insert(graph, node, "ReduceSum", [value, over], {"keepdims": 0}, name=name)


def _logarithm(graph: ir.Graph, node: ir.Node) -> None:
    name = str(node.outputs[0].name)
    inner = producer(node.inputs[0], "Sigmoid", "Softmax")
    if inner is None:
        return
    x = inner.inputs[0]
    if inner.op_type == "Softmax":
        axis = inner.attributes.get_int("axis", -1)
        new = insert(graph, node, "LogSoftmax", [x], {"axis": axis}, name=f"{name}_stable")
    else:
        negated = insert(graph, node, "Neg", [x], name=f"{name}_negated")
        tail = insert(graph, node, "Softplus", [negated], name=f"{name}_softplus")
        new = insert(graph, node, "Neg", [tail], name=f"{name}_stable")
    replace(graph, node.outputs[0], new)
