"""What the loss of a task adds to a bundle's graphs: ports besides data and trainables.

All are float32. The training graph computes ``loss`` as a sum of weighted terms, so that gradients
of micro-batches add up, and a sample of weight 0 is padding:

- ``cross_entropy``: ``target`` [n, C], one row of soft labels a sample; ``weight`` [n].
- ``bce``, ``mse``, ``l1``: ``target`` [n, C]; ``weight`` [n, C], one for each entry.
- ``output``: the graph's own scalar loss, times ``loss_scale`` []: a loss that nobody can look into
  cannot leave a sample out, so its micro-batches are always full.

Graphs in float16 take ``grad_scale`` [] besides: the gradient of the loss is multiplied by it, and
what is accumulated divided, so that small gradients are no zeros in between (arXiv 1710.03740).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from s2a_edge.spec.manifest import Task

Loss = Literal["cross_entropy", "bce", "mse", "l1", "output"]
Ports = dict[str, tuple[int, ...]]

HEAD_LOSSES: tuple[Loss, ...] = ("cross_entropy", "bce", "mse", "l1")
"""Losses that are put on a head of our own; ``output`` is the other."""
REGRESSION_LOSSES: tuple[Loss, ...] = ("mse", "l1")

TARGET, WEIGHT, LOSS_SCALE = "target", "weight", "loss_scale"
GRADIENT_SCALE = "grad_scale"
LOSS, LOGITS = "loss", "logits"


def loss_inputs(loss: Loss, batch: int, classes: int) -> Ports:
    """Inputs of a training graph that feed the loss, with their shapes."""
    if loss == "output":
        return {LOSS_SCALE: ()}
    weight = (batch,) if loss == "cross_entropy" else (batch, classes)
    return {TARGET: (batch, classes), WEIGHT: weight}


def scale_inputs(precision: str) -> Ports:
    """Inputs of a training graph of this ``--precision`` that scale gradients."""
    return {GRADIENT_SCALE: ()} if precision == "fp16" else {}


def training_outputs(task: Task, batch: int) -> Ports:
    """Outputs of a training graph besides the accumulated gradients."""
    logits: Ports = {} if task.loss == "output" else {LOGITS: (batch, task.classes)}
    return {LOSS: (), **logits}


def evaluation_outputs(task: Task, batch: int) -> Ports:
    """Outputs of the evaluation graph."""
    return {LOSS: ()} if task.loss == "output" else {LOGITS: (batch, task.classes)}
