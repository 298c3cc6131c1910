"""Says how a run goes on: to the caller with each micro-batch, to its metrics with each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from s2a_edge.run.fit_plan import FitPlan, Position
from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.loss_scale import LossScale
from s2a_edge.run.metrics import SCORED_LOSSES, Evaluation, Score, Tally
from s2a_edge.run.report import EpochRecord, Phase, Progress
from s2a_edge.run.run_folder import RunFolder
from s2a_edge.spec.errors import NonFiniteLossError


class FitReport:
    """Progress and metrics of one run.

    Args:
        plan: what is worked on.
        folder: where metrics go.
        guard: knows the memory.
        position: where the run stands; read, not changed.
        lr: learning rate by global step.
    """

    def __init__(
        self,
        plan: FitPlan,
        folder: RunFolder,
        guard: MemoryGuard,
        position: Position,
        lr: Callable[[int], float],
    ) -> None:
        self._plan, self._folder, self._guard = plan, folder, guard
        self._position, self._lr = position, lr
        self._validation = _last_validation(position)
        self._val_batches = 0
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Speed is counted from here."""
        self._epoch_start_s = time.monotonic()
        self._seen = 0  # samples of this epoch that this process has computed

    def trained(self, samples: int) -> None:
        """A micro-batch was computed."""
        self._seen += samples
        self._tell("train", self._position.step, self._plan.steps_per_epoch)

    def validating(self, done: int, count: int, tally: Tally) -> None:
        """A batch of a validation was; the last is told by :meth:`validated`."""
        self._validation, self._val_batches = (tally.loss(), tally.score()), count
        if done < count:
            self._tell("validate", done, count)

    def validated(self, evaluation: Evaluation) -> None:
        """A validation is complete."""
        self._validation = evaluation.loss, evaluation.score
        self._tell("validate", self._val_batches, self._val_batches)

    def step_done(
        self,
        samples: int,
        loss_sum: float,
        correct: float | None,
        lr: float,
        grad_norm: float,
        scale: LossScale | None = None,
    ) -> None:
        """An optimizer step is complete; ``loss_sum`` and ``correct`` are sums over its samples.

        With a ``scale``, a norm that is not finite says that the update was left out.
        """
        scaling: dict[str, object] = {}
        if scale is not None:
            scaling = {"loss_scale": scale.value, "skipped": not math.isfinite(grad_norm)}
        position = self._position
        self._folder.add_metrics(
            {
                "kind": "step",
                "epoch": position.epoch + 1,
                "step": position.step,
                "global_step": position.global_step,
                "samples": samples,
                "loss": _or_none(loss_sum / samples),
                "accuracy": None if correct is None else correct / samples,
                "lr": lr,
                "grad_norm": _or_none(grad_norm),
                "memory_bytes": self._guard.resident_bytes(),
                **scaling,
            }
        )

    def epoch_done(self, evaluation: Evaluation | None) -> EpochRecord:
        """An epoch is complete, its validation too."""
        sums = self._position.sums
        if not sums.samples:
            raise NonFiniteLossError(
                where=f"epoch {self._position.epoch + 1}",
                expected="a step with a finite loss",
                got="none: every one overflowed float16",
                todo="lower the learning rate, or pack with --precision bf16 or fp32",
            )
        record = EpochRecord(
            epoch=self._position.epoch + 1,
            loss=sums.loss / sums.samples,
            accuracy=self._accuracy(),
            val_loss=None if evaluation is None else evaluation.loss,
            val_metrics={} if evaluation is None else evaluation.metrics,
        )
        self._folder.add_metrics(
            {
                "kind": "epoch",
                **vars(record),
                "seconds": time.monotonic() - self._epoch_start_s,
                "peak_bytes": self._guard.peak_bytes,
            }
        )
        return record

    def _tell(self, phase: Phase, step: int, steps: int) -> None:
        on_progress = self._plan.on_progress
        if on_progress is None:
            return
        sums, seconds = self._position.sums, time.monotonic() - self._epoch_start_s
        training = phase == "train" and seconds > 0
        val_loss, score = self._validation or (None, None)
        on_progress(
            Progress(
                phase=phase,
                epoch=self._position.epoch + 1,
                epochs=self._plan.settings.epochs,
                step=step,
                steps=steps,
                loss=sums.loss / sums.samples if sums.samples else None,
                accuracy=self._accuracy() if sums.samples else None,
                lr=self._lr(max(0, self._position.global_step - 1)),
                images_s=self._seen / seconds if training else None,
                memory_bytes=self._guard.resident_bytes(),
                peak_bytes=self._guard.peak_bytes,
                budget_bytes=self._guard.budget_bytes,
                val_loss=val_loss,
                val_metric=None if score is None else score.name,
                val_score=None if score is None else score.value,
            )
        )

    def _accuracy(self) -> float | None:
        """Of the epoch so far; None for tasks without a right or wrong."""
        sums = self._position.sums
        return sums.correct / sums.samples if self._plan.loss.task.loss in SCORED_LOSSES else None


def _or_none(value: float) -> float | None:
    """JSON has no number for infinity."""
    return value if math.isfinite(value) else None


def _last_validation(position: Position) -> tuple[float, Score | None] | None:
    """What a resumed run knows of the validation before it was interrupted."""
    last = position.history[-1] if position.history else None
    if last is None or last.val_loss is None or position.best is None:
        return None
    name = position.best.metric
    value = last.val_loss if name == "loss" else last.val_metrics.get(name)
    return last.val_loss, None if value is None else Score(name, value, name != "loss")
