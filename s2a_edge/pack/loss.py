"""The losses and their gradients, emitted together, each in the form that cannot overflow.

Every loss is a weighted sum over samples or entries, so that micro-batches add up to an optimizer
step and padding weighs nothing; what the mean is, is the runtime's choice of weights.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.rule import reshape, scalar
from s2a_edge.spec.task_ports import LOSS, LOSS_SCALE, Loss, loss_inputs

LossRule = Callable[[GraphBuilder, ir.Value, ir.Value, ir.Value], tuple[ir.Value, ir.Value]]


def attach_loss(g: GraphBuilder, loss: Loss, output: ir.Value,
                ) -> tuple[tuple[ir.Value, ...], ir.Value, ir.Value]:
    """Appends the loss of a task and the gradient it starts from.

    Args:
        g: where nodes are appended.
        loss: which; see :mod:`s2a_edge.spec.task_ports`.
        output: logits [N, C]; for ``output`` the graph's own loss, one element.

    Returns:
        The graph inputs that the loss takes, ``loss`` [], and the gradient of ``output``.
    """
    dims = shape_of(output)
    ports = loss_inputs(loss, *dims) if loss != "output" else loss_inputs(loss, 0, 0)
    inputs = {name: g.input(name, ir.DataType.FLOAT, shape) for name, shape in ports.items()}
    if loss == "output":
        made, gradient = given_loss(g, output, inputs[LOSS_SCALE])
    else:
        made, gradient = LOSSES[loss](g, output, *inputs.values())
    made.name = LOSS
    return tuple(inputs.values()), made, gradient


def cross_entropy(g: GraphBuilder, logits: ir.Value, target: ir.Value, weight: ir.Value,
                  ) -> tuple[ir.Value, ir.Value]:
    """Softmax cross-entropy with soft targets and a weight per sample.

    ``loss = Σ_i w_i Σ_c -t_ic log p_ic``; ``dlogits_ic = w_i (p_ic Σ_c t_ic - t_ic)``.

    Args:
        g: where nodes are appended.
        logits: [N, C] float32.
        target: [N, C]; one-hot, smoothed, mixed, or times a class's weight: rows need not sum
            to 1.
        weight: [N]; 0 for padding.

    Returns:
        ``loss`` [] and ``dlogits`` [N, C].
    """
    column = g.op("Unsqueeze", weight, g.constant([1]))
    scaled = g.op("Mul", target, column)
    log_p = g.op("LogSoftmax", logits, axis=-1)
    total = g.op("ReduceSum", g.op("Mul", scaled, log_p), g.constant([0, 1]), keepdims=0)
    loss = g.op("Neg", total)
    g.kind = "gradients"
    mass = g.op("ReduceSum", scaled, g.constant([1]), keepdims=1)
    dlogits = g.op("Sub", g.op("Mul", g.op("Exp", log_p), mass), scaled)
    g.kind = "working"
    return loss, dlogits


def binary_cross_entropy(g: GraphBuilder, logits: ir.Value, target: ir.Value, weight: ir.Value,
                         ) -> tuple[ir.Value, ir.Value]:
    """Sigmoid cross-entropy of every entry by itself, with a weight each.

    ``loss = Σ_ic w_ic (max(z, 0) - z t + log(1 + exp(-|z|)))``, which is
    ``-t log σ(z) - (1 - t) log(1 - σ(z))`` without a logarithm of a rounded 0;
    ``dlogits_ic = w_ic (σ(z) - t)``.

    Args:
        g: where nodes are appended.
        logits: [N, C] float32.
        target: [N, C], each 0 to 1.
        weight: [N, C]; 0 for padding.

    Returns:
        ``loss`` [] and ``dlogits`` [N, C].
    """
    linear = g.op("Sub", g.op("Relu", logits), g.op("Mul", logits, target))
    tail = g.op("Softplus", g.op("Neg", g.op("Abs", logits)))
    loss = _weighted_sum(g, g.op("Add", linear, tail), weight)
    g.kind = "gradients"
    dlogits = g.op("Mul", g.op("Sub", g.op("Sigmoid", logits), target), weight)
    g.kind = "working"
    return loss, dlogits


def squared_error(g: GraphBuilder, logits: ir.Value, target: ir.Value, weight: ir.Value,
                  ) -> tuple[ir.Value, ir.Value]:
    """``loss = Σ_ic w_ic (z - t)²``; ``dlogits_ic = 2 w_ic (z - t)``. All [N, C] float32."""
    difference = g.op("Sub", logits, target)
    loss = _weighted_sum(g, g.op("Mul", difference, difference), weight)
    g.kind = "gradients"
    dlogits = g.op("Mul", g.op("Mul", difference, scalar(g, 2.0, difference)), weight)
    g.kind = "working"
    return loss, dlogits


def absolute_error(g: GraphBuilder, logits: ir.Value, target: ir.Value, weight: ir.Value,
                   ) -> tuple[ir.Value, ir.Value]:
    """``loss = Σ_ic w_ic |z - t|``; ``dlogits_ic = w_ic sign(z - t)``, 0 where they are equal."""
    difference = g.op("Sub", logits, target)
    loss = _weighted_sum(g, g.op("Abs", difference), weight)
    g.kind = "gradients"
    dlogits = g.op("Mul", g.op("Sign", difference), weight)
    g.kind = "working"
    return loss, dlogits


def given_loss(g: GraphBuilder, value: ir.Value, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A loss that the graph computes itself: ``loss = scale · value``, ``dvalue = scale``.

    Args:
        g: where nodes are appended.
        value: one element of any rank, the mean over a full micro-batch.
        scale: []; 1 / micro-batches of an optimizer step.
    """
    loss = g.op("Mul", reshape(g, value, ()), scale)
    g.kind = "gradients"
    # A node of its own also where the value is a scalar already: inputs are no gradients.
    dvalue = g.op("Reshape", scale, g.constant(list(shape_of(value))))
    g.kind = "working"
    return loss, dvalue


def _weighted_sum(g: GraphBuilder, terms: ir.Value, weight: ir.Value) -> ir.Value:
    return g.op("ReduceSum", g.op("Mul", terms, weight), g.constant([0, 1]), keepdims=0)


LOSSES: dict[Loss, LossRule] = {
    "cross_entropy": cross_entropy,
    "bce": binary_cross_entropy,
    "mse": squared_error,
    "l1": absolute_error,
}

__all__ = ["LOSSES", "absolute_error", "attach_loss", "binary_cross_entropy",
           "cross_entropy", "given_loss", "squared_error"]
