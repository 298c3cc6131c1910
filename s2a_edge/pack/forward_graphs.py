"""Graphs without a backward: evaluation, a graph's own loss, and inference."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.environment import Environment
from s2a_edge.pack.graph import leading_to
from s2a_edge.spec.task_ports import LOSS


def forward_model(adapted: Adapted, name: str) -> ir.Model:
    """The forward alone: data inputs and ``param.*`` to ``logits``."""
    g, env = _forward(adapted, adapted.data_inputs, [adapted.logits])
    inputs = _inputs(adapted, adapted.data_inputs)
    return model_of([env.enter(v) for v in inputs], [env.enter(adapted.logits)], g, name)


def loss_model(adapted: Adapted, name: str) -> ir.Model:
    """The forward of a graph that is its own loss: data inputs and ``param.*`` to ``loss`` []."""
    g, env = _forward(adapted, adapted.data_inputs, [adapted.logits])
    loss = g.op("Reshape", env.enter(adapted.logits), g.constant([]))
    loss.name = LOSS
    return model_of([env.enter(v) for v in _inputs(adapted, adapted.data_inputs)], [loss], g, name)


def predictions_model(adapted: Adapted, name: str) -> ir.Model:
    """The forward of a graph with its own loss to its other outputs, under their own names.

    It takes those data inputs that they depend on. A graph without other outputs gives its loss.
    """
    given = adapted.predictions or {LOSS: adapted.logits}
    leading = leading_to(adapted.nodes, given.values())
    read = {v for node in leading for v in node.inputs}
    data = [v for v in adapted.data_inputs if v in read]
    g, env = _forward(adapted, data, list(given.values()))
    outputs = []
    for wanted, value in given.items():
        made = env.enter(value)
        if made.name != wanted or made in outputs:
            for other in (v for node in g.nodes for v in node.outputs):
                if other.name == wanted:  # a bias was added behind the value that had the name
                    other.name = g.unique(f"{wanted}_before")
            made = g.op("Identity", made)
            made.name = wanted
        outputs.append(made)
    return model_of([env.enter(v) for v in _inputs(adapted, data)], outputs, g, name)


def _inputs(adapted: Adapted, data: Sequence[ir.Value]) -> list[ir.Value]:
    return [*data, *(t.value for t in adapted.trainables)]


def _forward(adapted: Adapted, data: Sequence[ir.Value], outputs: Sequence[ir.Value],
             ) -> tuple[GraphBuilder, Environment]:
    """The nodes that ``outputs`` need, copied."""
    g = GraphBuilder(taken=adapted.names)
    env = Environment(_inputs(adapted, data), g)
    leading = leading_to(adapted.nodes, outputs)
    for node in adapted.nodes:
        if node in leading:
            env.clone(node)
    return g, env


__all__ = ["forward_model", "loss_model", "predictions_model"]
