"""A graph that computes its own loss: where it is, and what else the graph gives out."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes import common as passes

from s2a_edge.pack.graph import shape_of
from s2a_edge.spec.errors import SourceError

_MAX_RANK = 2  # [], [1] or [1, 1]: what exporters make of a mean


def keep_own_loss(model: ir.Model, name: str, batch: int) -> tuple[ir.Value, tuple[ir.Value, ...]]:
    """Makes the loss the first output of ``model``, what is given for each sample the others.

    Args:
        model: with static shapes.
        name: of the output that is the loss.
        batch: length of the first axis.

    Returns:
        The loss, one float32 element, and the outputs [batch, ...] that nodes compute.

    Raises:
        SourceError: there is no such output, or it is no scalar; the outputs are listed.
    """
    outputs = list(model.graph.outputs)
    loss = next((value for value in outputs if value.name == name), None)
    if loss is None or loss.dtype != ir.DataType.FLOAT or math.prod(shape_of(loss)) != 1 \
            or len(shape_of(loss)) > _MAX_RANK:
        listed = ", ".join(f"{v.name} {list(shape_of(v))}" for v in outputs)
        got = "no such output" if loss is None else f"{loss.dtype} {list(shape_of(loss))}"
        raise SourceError(where=f"--loss output:{name}", expected="a float32 scalar output, the "
                          "mean over a batch", got=f"{got}; outputs: {listed}",
                          todo="name one of them, or export the model with its loss")
    others = tuple(v for v in outputs if v is not loss and v.producer() is not None
                   and shape_of(v)[:1] == (batch,))
    model.graph.outputs.clear()
    model.graph.outputs.extend((loss, *others))
    passes.RemoveUnusedNodesPass()(model)
    return loss, others
