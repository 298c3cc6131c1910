"""From targets to what a training graph's loss takes: rows of soft targets and their weights.

The graph adds up weighted terms; what the weights make of them is this, with B the effective
batch, k <= B the samples of the optimizer step at hand (fewer than B only in the last of an epoch)
and C the entries of a row:

- ``cross_entropy``: ``k/B`` times the mean over the step. With class weights that is the weighted
  mean ``Σ_i w_{y_i} loss_i / Σ_i w_{y_i}`` over all samples of the step, as
  ``torch.nn.CrossEntropyLoss(weight=w)`` has it over a batch, whatever the micro-batch.
- ``bce``: ``k/B`` times the mean over samples and labels, as ``torch.nn.BCEWithLogitsLoss``; class
  weights are its ``pos_weight``: they multiply the loss of a label where it is on.
- ``mse``, ``l1``: ``k/B`` times the mean over samples and outputs, of standardised targets.
- ``output``: ``1/M`` times the sum of the losses of the step's M micro-batches, all of them full.

So a step of B samples is the mean that PyTorch takes, and every sample of a shorter last step
counts as much as one of a full step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from s2a_edge.run.data.targets import soft_targets
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.manifest import Task
from s2a_edge.spec.task_ports import LOSS_SCALE, TARGET, WEIGHT

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LossInputs:
    """How a run feeds the loss of its task.

    Attributes:
        task: of the bundle.
        effective_batch: samples per optimizer step.
        label_smoothing: share of each target that is spread over all classes; for ``bce`` each
            target moves that share of its way to 1/2.
        class_weights: float32 [C], or None.
        scaling: of regressed numbers; None: as they are.
    """

    task: Task
    effective_batch: int
    label_smoothing: float = 0.0
    class_weights: F32 | None = None
    scaling: TargetScaling | None = None

    def sample_weight(self, step_targets: Array) -> float:
        """The weight of each sample of an optimizer step, before its class's own.

        Args:
            step_targets: of all samples of the step; of rank 2 where they are no class indices.
        """
        if self.class_weights is None or step_targets.ndim != 1:
            return 1.0 / self.effective_batch
        total = float(self.class_weights[step_targets].sum(dtype=np.float64))
        # Classes of weight 0 alone: nothing to learn from, and nothing to divide by.
        return len(step_targets) / (self.effective_batch * total) if total > 0 else 0.0

    def rows(self, targets: Array, sample_weight: float) -> dict[str, F32]:
        """Loss inputs of the samples of one micro-batch, without padding.

        Args:
            targets: k rows in the form of the task (:mod:`s2a_edge.run.data.targets`); for
                ``cross_entropy`` also soft labels [k, C].
            sample_weight: of :meth:`sample_weight` for the whole step.
        """
        if self.task.loss == "output":
            return {LOSS_SCALE: np.asarray(len(targets) * sample_weight, np.float32)}
        if self.task.loss == "cross_entropy":
            weight = np.full(len(targets), sample_weight, np.float32)
            return {TARGET: self._soft(targets), WEIGHT: weight}
        entry_weight = sample_weight / self.task.classes
        if self.task.loss == "bce":
            return self._on_or_off(targets, entry_weight)
        scaled = targets.astype(np.float32) if self.scaling is None else self.scaling.apply(targets)
        return {TARGET: scaled, WEIGHT: np.full(scaled.shape, entry_weight, np.float32)}

    def _soft(self, targets: Array) -> F32:
        if targets.ndim == 2:
            return targets.astype(np.float32)
        classes = self.task.classes
        return soft_targets(targets, classes, self.label_smoothing, self.class_weights)

    def _on_or_off(self, targets: Array, entry_weight: float) -> dict[str, F32]:
        """``p t softplus(-z) + (1 - t) softplus(z)`` is, with ``w = 1 - t + p t``,
        ``w`` times the entropy at the target ``p t / w``.
        """
        target = targets.astype(np.float32)
        if self.label_smoothing:
            target += np.float32(self.label_smoothing) * (np.float32(0.5) - target)
        weight = np.ones_like(target)
        if self.class_weights is not None:
            positive = self.class_weights * target
            weight = 1 - target + positive
            target = np.divide(positive, weight, out=np.zeros_like(target), where=weight > 0)
        return {TARGET: target, WEIGHT: weight * np.float32(entry_weight)}
