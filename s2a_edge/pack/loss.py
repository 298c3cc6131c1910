"""The loss and its gradient, emitted together."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.graph import GraphBuilder


def cross_entropy(g: GraphBuilder, logits: ir.Value, target: ir.Value, weight: ir.Value,
                  ) -> tuple[ir.Value, ir.Value]:
    """Softmax cross-entropy with soft targets and a weight per sample.

    ``loss = Σ_i w_i Σ_c -t_ic log p_ic``; ``dlogits_ic = w_i (p_ic Σ_c t_ic - t_ic)``.

    Args:
        g: where nodes are appended.
        logits: [N, C] float32.
        target: [N, C] float32; rows sum to 1 (one-hot, smoothed or mixed).
        weight: [N] float32; 1 / effective batch for a real sample, 0 for padding.

    Returns:
        ``loss`` [] and ``dlogits`` [N, C].
    """
    column = g.op("Unsqueeze", weight, g.constant([1]))
    scaled = g.op("Mul", target, column)
    log_p = g.op("LogSoftmax", logits, axis=-1)
    total = g.op("ReduceSum", g.op("Mul", scaled, log_p), g.constant([0, 1]), keepdims=0)
    loss = g.op("Neg", total)
    loss.name = "loss"
    g.kind = "gradients"
    mass = g.op("ReduceSum", scaled, g.constant([1]), keepdims=1)
    dlogits = g.op("Sub", g.op("Mul", g.op("Exp", log_p), mass), scaled)
    g.kind = "working"
    return loss, dlogits
