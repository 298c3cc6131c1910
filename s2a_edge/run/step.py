"""One optimizer step: micro-batches accumulate their gradients, then the update runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2a_edge.run.batch_inputs import BatchInputs
from s2a_edge.run.data import soft_targets
from s2a_edge.run.device_tensor import Array
from s2a_edge.run.engine import Engine
from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.state import TrainingState
from s2a_edge.spec.errors import BudgetError, DataError, NonFiniteLossError
from s2a_edge.spec.manifest import BatchGraph, Manifest


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: mean over the samples, before the update.
        correct: samples whose largest logit is at their target's largest entry.
        samples: how many samples there were.
        grad_norm: global L2 norm of the gradient, before clipping.
        lr: learning rate that was used.
    """

    loss: float
    correct: int
    samples: int
    grad_norm: float
    lr: float

    @property
    def accuracy(self) -> float:
        """Share of correct samples, 0..1."""
        return self.correct / self.samples


class TrainStep:
    """The training graph of one micro-batch size and the optimizer graph, bound to one state.

    Args:
        engine: runs both.
        folder: of the bundle.
        manifest: of the bundle.
        graph: which training graph.
        state: updated in place.

    Raises:
        BundleError: graphs and manifest do not belong together.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        manifest: Manifest,
        graph: BatchGraph,
        state: TrainingState,
    ) -> None:
        classes = manifest.task.classes
        self.micro_batch = graph.batch
        self.prefetch = engine.provider != "cpu"  # on the CPU reading would compete for the cores
        self.effective_batch = manifest.recipe.effective_batch
        self.state = state
        self._classes = classes
        self._optimizer_kind = manifest.recipe.optimizer
        self.inputs = BatchInputs(engine, manifest.inputs, graph.batch)
        self._target = engine.tensor((graph.batch, classes))
        self._weight = engine.tensor((graph.batch,))
        self._loss, self._logits = engine.tensor(()), engine.tensor((graph.batch, classes))
        # Before the training graph: see Trainer on the order of sessions.
        scalars = Hyperparameters().scalars(self._optimizer_kind, lr=0.0, step=0)
        self._scalars = {name: engine.tensor(()) for name in scalars}
        self._grad_norm = engine.tensor(())
        self._optimizer = engine.load(folder / manifest.graphs.optimizer.file)
        self._optimizer.bind(
            {**state.inputs("param", "acc", *state.slots), **self._scalars},
            {**state.outputs("param", *state.slots), "grad_norm": self._grad_norm},
        )
        self._train = engine.load(folder / graph.file)
        self._train.bind(
            {
                **self.inputs.tensors,
                **state.inputs("param", "acc"),
                "target": self._target,
                "weight": self._weight,
            },
            {**state.outputs("acc"), "loss": self._loss, "logits": self._logits},
        )

    def accumulate(
        self, inputs: Mapping[str, Array], target: npt.NDArray[np.float32], *, where: str
    ) -> tuple[float, int]:
        """Add one micro-batch's gradients to the accumulators.

        Every sample weighs 1 / effective batch, padding weighs nothing: micro-batches of any size
        add up to the gradient of the mean over a whole effective batch.

        Args:
            inputs: by name, [k, *shape]; or the bound arrays themselves.
            target: soft labels float32 [k, C] of the k <= micro-batch samples.
            where: for errors: epoch and step.

        Returns:
            Sum of the samples' losses, and how many were classified correctly.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; accumulators are zeroed.
            BudgetError: the arena is exhausted; accumulators are zeroed.
        """
        samples = len(target)
        padding = self.micro_batch - samples
        self.inputs.write(inputs)
        self._target.write(np.pad(target, ((0, padding), (0, 0))))
        real = np.arange(self.micro_batch) < samples
        self._weight.write(real.astype(np.float32) / np.float32(self.effective_batch))
        try:
            self._train.run()
        except BudgetError as error:
            self.state.zero_accumulators()  # some of them may have been written
            raise _placed(error, where) from error
        loss = float(self._loss.read()) * self.effective_batch
        if not math.isfinite(loss):
            self.state.zero_accumulators()
            raise _not_finite(where, "loss", loss)
        logits = self._logits.read()[:samples]
        return loss, int(np.sum(logits.argmax(axis=1) == target.argmax(axis=1)))

    def update(self, lr: float, step: int, settings: Hyperparameters, *, where: str) -> float:
        """Run the optimizer on the accumulated gradients, then zero them.

        Args:
            lr: learning rate.
            step: optimizer steps done before this one.
            settings: everything else.
            where: for errors: epoch and step.

        Returns:
            Global gradient norm before clipping.

        Raises:
            NonFiniteLossError: the norm is NaN or infinite; parameters and state are unchanged.
            BudgetError: the arena is exhausted; parameters may be partly updated.
        """
        for name, value in settings.scalars(self._optimizer_kind, lr, step).items():
            self._scalars[name].write(value)
        try:
            self._optimizer.run()
        except BudgetError as error:
            raise _placed(error, where) from error
        finally:
            self.state.zero_accumulators()
        grad_norm = float(self._grad_norm.read())
        if not math.isfinite(grad_norm):
            raise _not_finite(where, "gradient norm", grad_norm)
        return grad_norm

    def rehearse(self, settings: Hyperparameters) -> None:
        """Run both graphs once on samples of weight 0, the larger one last.

        Memory and time are those of a real step. The caller restores the state afterwards.

        Raises:
            BudgetError: the arena is exhausted.
        """
        for tensor in (*self.inputs.tensors.values(), self._target, self._weight):
            tensor.zero()
        for name, value in settings.scalars(self._optimizer_kind, lr=0.0, step=0).items():
            self._scalars[name].write(value)
        self._optimizer.run()
        self._train.run()

    def run(
        self,
        inputs: Mapping[str, Array],
        labels: Array,
        *,
        lr: float,
        step: int,
        settings: Hyperparameters,
        where: str,
    ) -> StepResult:
        """One whole optimizer step on samples that are in memory.

        Args:
            inputs: by name, [k, *shape], 1 <= k <= effective batch.
            labels: class indices int [k], or soft labels float [k, C].
            lr: learning rate.
            step: optimizer steps done before this one.
            settings: other hyperparameters.
            where: for errors.

        Raises:
            DataError: names, shapes or labels do not suit the bundle.
            NonFiniteLossError: loss or gradient norm; parameters are unchanged.
            BudgetError: the arena is exhausted.
        """
        samples = _check_samples(inputs, labels, self.inputs, self.effective_batch)
        targets = _targets(labels, self._classes)
        loss_sum, correct = 0.0, 0
        for start in range(0, samples, self.micro_batch):
            rows = slice(start, min(start + self.micro_batch, samples))
            part = {name: np.asarray(values)[rows] for name, values in inputs.items()}
            loss, hits = self.accumulate(part, targets[rows], where=where)
            loss_sum, correct = loss_sum + loss, correct + hits
        grad_norm = self.update(lr, step, settings, where=where)
        return StepResult(loss_sum / samples, correct, samples, grad_norm, lr)


def _not_finite(where: str, what: str, value: float) -> NonFiniteLossError:
    return NonFiniteLossError(
        where=where,
        expected=f"a finite {what}",
        got=str(value),
        todo="lower the learning rate or set max_norm; the last checkpoint is kept",
    )


def _placed(error: BudgetError, where: str) -> BudgetError:
    """The same error, saying at which step it happened."""
    return BudgetError(
        where=f"{where}: {error.where}",
        expected=error.expected,
        got=error.got,
        todo=error.todo,
        missing_bytes=error.missing_bytes,
    )


def _targets(labels: Array, classes: int) -> npt.NDArray[np.float32]:
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == classes:
        return labels.astype(np.float32)
    integer = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not integer or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(
            where="labels",
            expected=f"class indices 0..{classes - 1} [k], or soft labels [k, {classes}]",
            got=f"{labels.dtype}{list(labels.shape)}"
            + (f" from {labels.min()} to {labels.max()}" if integer and len(labels) else ""),
            todo="give labels of the bundle's classes",
        )
    return soft_targets(labels.astype(np.int64), classes)


def _check_samples(
    inputs: Mapping[str, Array], labels: Array, bound: BatchInputs, effective_batch: int
) -> int:
    samples = len(labels)
    if not 1 <= samples <= effective_batch:
        raise DataError(
            where="step",
            expected=f"1 to {effective_batch} samples (the effective batch)",
            got=str(samples),
            todo="split the samples into several steps",
        )
    expected = {name: (samples, *t.shape[1:]) for name, t in bound.tensors.items()}
    got = {name: np.shape(values) for name, values in inputs.items()}
    if expected != got:
        raise DataError(
            where="step inputs",
            expected=", ".join(f"{name} {list(shape)}" for name, shape in expected.items()),
            got=", ".join(f"{name} {list(shape)}" for name, shape in got.items()) or "nothing",
            todo="give every data input of the bundle, one row per label",
        )
    return samples
