"""One optimizer step: micro-batches accumulate their gradients, then the update runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2a_edge.run.batch_inputs import BatchInputs
from s2a_edge.run.data.targets import no_targets
from s2a_edge.run.device_tensor import Array
from s2a_edge.run.engine import Engine
from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.metrics import correct
from s2a_edge.run.optimizer_step import OptimizerStep
from s2a_edge.run.samples import check_inputs, check_targets, full_batch_needed
from s2a_edge.run.state import TrainingState
from s2a_edge.spec.errors import BudgetError, DataError, NonFiniteLossError
from s2a_edge.spec.manifest import BatchGraph, Manifest
from s2a_edge.spec.task_ports import LOGITS, LOSS, loss_inputs, scale_inputs, training_outputs


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: mean over the samples, before the update.
        correct: samples that were recognised; of several labels, a sample counts by the share of
            decisions that are right. None for tasks without a right or wrong.
        samples: how many samples there were.
        grad_norm: global L2 norm of the gradient, before clipping; not finite where it overflowed
            float16 and the update was left out.
        lr: learning rate that was used.
    """

    loss: float
    correct: float | None
    samples: int
    grad_norm: float
    lr: float

    @property
    def accuracy(self) -> float | None:
        """Share of correct samples, 0..1."""
        return None if self.correct is None else self.correct / self.samples


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
        task = manifest.task
        self.micro_batch = graph.batch
        self.prefetch = engine.provider != "cpu"  # on the CPU reading would compete for the cores
        self.effective_batch = manifest.recipe.effective_batch
        self.state = state
        self._task = task
        self.inputs = BatchInputs(engine, manifest.inputs, graph.batch)
        ports = loss_inputs(task.loss, graph.batch, task.classes)
        self._loss_inputs = {name: engine.tensor(shape) for name, shape in ports.items()}
        ports = scale_inputs(manifest.recipe.precision)
        self._scales = {name: engine.tensor(shape) for name, shape in ports.items()}
        ports = training_outputs(task, graph.batch)
        self._outputs = {name: engine.tensor(shape) for name, shape in ports.items()}
        # Before the training graph: see Trainer on the order of sessions.
        self._optimizer = OptimizerStep(
            engine, folder / manifest.graphs.optimizer.file, manifest.recipe.optimizer, state
        )
        self._train = engine.load(folder / graph.file)
        self._train.bind(
            {
                **self.inputs.tensors,
                **state.inputs("param", "acc"),
                **self._loss_inputs,
                **self._scales,
            },
            {**state.outputs("acc"), **self._outputs},
        )

    def accumulate(
        self,
        inputs: Mapping[str, Array],
        targets: Array,
        rows: Mapping[str, npt.NDArray[np.float32]],
        *,
        where: str,
    ) -> tuple[float, float | None]:
        """Add one micro-batch's gradients to the accumulators.

        Padding weighs nothing, so micro-batches of any size add up to the gradient of the mean over
        a whole effective batch; :mod:`s2a_edge.run.loss_inputs` says which mean.

        Args:
            inputs: by name, [k, *shape]; or the bound arrays themselves.
            targets: of the k <= micro-batch samples, in the form of the task.
            rows: what :meth:`LossInputs.rows` made of them.
            where: for errors: epoch and step.

        Returns:
            The loss times the effective batch, and how many samples were recognised (None for
            tasks without a right or wrong).

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; accumulators are zeroed. Not with
                scaled gradients: they are not finite either then, and :meth:`update` sees it.
            BudgetError: the arena is exhausted; accumulators are zeroed.
            DataError: an input holds an index that no table of the graph has; likewise.
        """
        self.inputs.write(inputs)
        for name, tensor in self._loss_inputs.items():
            tensor.write(_padded(rows[name], tensor.shape))
        scale = self.state.loss_scale
        for tensor in self._scales.values():
            tensor.write(np.asarray(1.0 if scale is None else scale.value, np.float32))
        try:
            self._train.run()
        except BudgetError as error:
            self.state.zero_accumulators()  # some of them may have been written
            raise placed(error, where) from error
        except DataError:
            self.state.zero_accumulators()
            raise
        loss = float(self._outputs[LOSS].read()) * self.effective_batch
        if not math.isfinite(loss) and scale is None:
            self.state.zero_accumulators()
            raise _not_finite(where, "loss", loss)
        if LOGITS not in self._outputs:
            return loss, None
        logits = self._outputs[LOGITS].read()[: len(targets)]
        return loss, correct(self._task, logits, targets)

    def update(self, lr: float, step: int, settings: Hyperparameters, *, where: str) -> float:
        """Run the optimizer on the accumulated gradients, then zero them.

        Args:
            lr: learning rate.
            step: optimizer steps done before this one.
            settings: everything else.
            where: for errors: epoch and step.

        Returns:
            Global gradient norm before clipping. With scaled gradients it may be NaN or infinite:
            parameters and state are unchanged then, and the scale is smaller.

        Raises:
            NonFiniteLossError: the norm is NaN or infinite, and no smaller scale can help;
                parameters and state are unchanged.
            BudgetError: the arena is exhausted; parameters may be partly updated.
        """
        scale = self.state.loss_scale
        done = step if scale is None else step - scale.skipped_steps
        try:
            grad_norm = self._optimizer.run(lr, done, settings)
        except BudgetError as error:
            raise placed(error, where) from error
        finally:
            self.state.zero_accumulators()
        is_finite = math.isfinite(grad_norm)
        if not is_finite and (scale is None or scale.exhausted):
            raise _not_finite(where, "gradient norm", grad_norm)
        if scale is not None:
            self.state.loss_scale = scale.after_good_step() if is_finite else scale.after_overflow()
        return grad_norm

    def rehearse(self, settings: Hyperparameters) -> None:
        """Run both graphs once on samples of weight 0, the larger one last.

        Memory and time are those of a real step. The caller restores the state afterwards.

        Raises:
            BudgetError: the arena is exhausted.
        """
        for tensor in (*self.inputs.tensors.values(), *self._loss_inputs.values()):
            tensor.zero()
        self._optimizer.rehearse(settings)
        self._train.run()

    def run(
        self,
        inputs: Mapping[str, Array],
        targets: Array | None,
        loss: LossInputs,
        *,
        lr: float,
        step: int,
        settings: Hyperparameters,
        where: str,
    ) -> StepResult:
        """One whole optimizer step on samples that are in memory.

        Args:
            inputs: by name, [k, *shape], 1 <= k <= effective batch.
            targets: in the form of the task (:mod:`s2a_edge.run.data.targets`); for cross-entropy
                also soft labels [k, C]. None for a graph that is its own loss.
            loss: how targets become what the graph takes.
            lr: learning rate.
            step: optimizer steps done before this one.
            settings: other hyperparameters.
            where: for errors.

        Raises:
            DataError: names, shapes or targets do not suit the bundle.
            NonFiniteLossError: loss or gradient norm; parameters are unchanged. With scaled
                gradients only when no smaller scale can help.
            BudgetError: the arena is exhausted.
        """
        samples = check_inputs(inputs, self.inputs, self.effective_batch)
        if self._task.loss == "output" and samples != self.effective_batch:
            raise full_batch_needed(self.effective_batch, samples)
        checked = no_targets(samples) if targets is None else np.asarray(targets)
        checked = check_targets(checked, self._task, samples)
        weight = loss.sample_weight(checked)
        loss_sum, hit_sum = 0.0, 0.0
        for start in range(0, samples, self.micro_batch):
            rows = slice(start, min(start + self.micro_batch, samples))
            part = {name: np.asarray(values)[rows] for name, values in inputs.items()}
            of_part = checked[rows]
            term, hits = self.accumulate(part, of_part, loss.rows(of_part, weight), where=where)
            loss_sum, hit_sum = loss_sum + term, hit_sum + (hits or 0.0)
        grad_norm = self.update(lr, step, settings, where=where)
        recognised = None if hits is None else hit_sum
        return StepResult(loss_sum / samples, recognised, samples, grad_norm, lr)


def _padded(rows: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Rows of zeros behind ``rows``, up to ``shape``: samples of weight 0."""
    if rows.shape == shape:
        return rows
    padded = np.zeros(shape, np.float32)
    padded[: len(rows)] = rows
    return padded


def _not_finite(where: str, what: str, value: float) -> NonFiniteLossError:
    return NonFiniteLossError(
        where=where,
        expected=f"a finite {what}",
        got=str(value),
        todo="lower the learning rate or set max_norm; the last checkpoint is kept",
    )


def placed(error: BudgetError, where: str) -> BudgetError:
    """The same error, saying at which point of a run it happened."""
    return BudgetError(
        where=f"{where}: {error.where}",
        expected=error.expected,
        got=error.got,
        todo=error.todo,
        missing_bytes=error.missing_bytes,
    )
