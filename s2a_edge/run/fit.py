"""The training loop: epochs of optimizer steps, validation, checkpoints, and a clean way out.

What can be interrupted is interrupted between two micro-batches, and what is saved is the state
after the last complete optimizer step: a resumed run computes exactly what it would have computed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import cast

from s2a_edge.run.checkpoint import (
    FORMAT,
    FORMAT_VERSION,
    Best,
    CheckpointInfo,
    EpochSums,
    write_checkpoint,
)
from s2a_edge.run.data import MicroBatch, batches
from s2a_edge.run.evaluate import Evaluator
from s2a_edge.run.fit_plan import FitPlan, Position
from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.metrics import SCORED_LOSSES, Evaluation, Score, Tally
from s2a_edge.run.report import EpochRecord, Phase, Progress
from s2a_edge.run.run_folder import RunFolder
from s2a_edge.run.runtime_errors import run_error
from s2a_edge.run.service_notify import ServiceNotifier
from s2a_edge.run.step import TrainStep
from s2a_edge.run.stop_request import StopRequest
from s2a_edge.spec.errors import BudgetError, DataError, StorageError

CHECKPOINT_INTERVAL_S = 600.0
"""Without a wish for steps, at most this much work is lost when power fails."""


class Fit:
    """One call of ``Trainer.fit``: the loop and its position.

    Args:
        plan: what to work on.
        train: the step, bound to the state to be trained.
        evaluator: bound to the same state.
        folder: where checkpoints and metrics go.
        guard: watches the memory, already running.
        stop: a signal that arrived.
        position: where to start; new runs start at zero.
    """

    def __init__(
        self,
        plan: FitPlan,
        train: TrainStep,
        evaluator: Evaluator,
        folder: RunFolder,
        guard: MemoryGuard,
        stop: StopRequest,
        position: Position,
    ) -> None:
        self.position = position
        self._plan, self._train, self._evaluator = plan, train, evaluator
        self._folder, self._guard, self._stop = folder, guard, stop
        self._steps = plan.steps_per_epoch
        self._lr = plan.settings.schedule(self._steps)
        self._last_save_s = time.monotonic()
        self._epoch_start_s = time.monotonic()
        self._seen = 0  # samples of this epoch that this process has computed
        self._updating = False
        self._sample_weight = (-1, 0.0)  # of which step, and what it is
        self._validation = _last_validation(position)
        self._val_batches = 0
        self._service = ServiceNotifier.of_environment()

    def run(self) -> None:
        """Train to the end, or until a signal; the last checkpoint is current either way.

        Raises:
            NonFiniteLossError: loss or gradient; the last checkpoint is kept as it is.
            BudgetError: above the budget; the last complete step is saved first if it can be.
            DataError: a sample cannot be read; saved likewise.
            StorageError: a checkpoint could not be written; the one before is intact.
        """
        self._service.ready()
        self.save()
        try:
            while self.position.epoch < self._plan.settings.epochs and not self.out_of_patience:
                if not self._run_epoch():
                    self._service.stopping()
                    self.save()
                    return
        except (BudgetError, DataError):
            self._save_what_is_whole()
            raise
        except MemoryError as error:  # an image, say, with an address-space limit in force
            self._save_what_is_whole()
            raise run_error(error, self._where(self.position.step)) from error

    @property
    def out_of_patience(self) -> bool:
        """No epoch was better than the best for as long as the settings allow."""
        patience, best = self._plan.settings.patience, self.position.best
        if patience is None or best is None:
            return False
        return self.position.epoch - best.epoch >= patience

    def save(self) -> None:
        """Write the last checkpoint: the state after the last complete step."""
        self._write(self._folder.last)
        self._last_save_s = time.monotonic()

    def _save_what_is_whole(self) -> None:
        """After an error: keep the last complete step, if the disk lets us."""
        self._train.state.zero_accumulators()
        if not self._updating:  # otherwise parameters may be half updated
            with contextlib.suppress(StorageError):
                self.save()

    def _run_epoch(self) -> bool:
        """The rest of the current epoch; False if a signal ended it."""
        self._epoch_start_s, self._seen = time.monotonic(), 0
        if not self._train_epoch():
            return False
        evaluation = None
        if self._plan.val is not None:
            evaluation = self._evaluator.evaluate(
                self._plan.val,
                scaling=self._plan.loss.scaling,
                after_batch=self._after_batch,
            )
            if evaluation is None:
                return False
            self._validation = evaluation.loss, evaluation.score
            self._tell("validate", self._val_batches, self._val_batches)
        self._finish_epoch(evaluation)
        return True

    def _train_epoch(self) -> bool:
        loss_sum, correct = 0.0, 0.0  # of the current optimizer step
        with contextlib.closing(self._reader()) as parts:
            for part in parts:
                loss, hits = self._accumulate(part)
                loss_sum, correct = loss_sum + loss, correct + (hits or 0.0)
                if part.last:
                    self._update(part, loss_sum, None if hits is None else correct)
                    loss_sum, correct = 0.0, 0.0
                self._guard.check(self._where(part.step))
                self._seen += part.samples
                self._tell("train", self.position.step, self._steps)
                self._service.alive(self._where(part.step))
                if self._stop.signal_name is not None:
                    self._train.state.zero_accumulators()
                    return False
                if part.last and self._save_is_due():
                    self.save()
        return True

    def _reader(self) -> Generator[MicroBatch, None, None]:
        settings = self._plan.settings
        prefetch = self._train.prefetch
        parts = batches(
            self._plan.data,
            self._train.effective_batch,
            self._train.micro_batch,
            self.position.epoch,
            settings.seed,
            self.position.step,
            augment=settings.augment,
            prefetch=prefetch,
            drop_last=self._plan.full_batches,
            buffers=self._train.inputs.buffers(2 if prefetch else 1),
        )
        return cast("Generator[MicroBatch, None, None]", parts)  # it can be closed

    def _accumulate(self, part: MicroBatch) -> tuple[float, float | None]:
        loss = self._plan.loss
        if self._sample_weight[0] != part.step:
            of_step = self._plan.data.targets[part.step_indices]
            self._sample_weight = part.step, loss.sample_weight(of_step)
        rows = loss.rows(part.targets, self._sample_weight[1])
        return self._train.accumulate(
            part.inputs, part.targets, rows, where=self._where(part.step)
        )

    def _update(self, part: MicroBatch, loss_sum: float, correct: float | None) -> None:
        """Run the optimizer and move the position by one step."""
        position, where = self.position, self._where(part.step)
        lr = self._lr(position.global_step)
        settings = self._plan.settings.optimizer
        self._updating = True
        grad_norm = self._train.update(lr, position.global_step, settings, where=where)
        self._updating = False
        sums = position.sums
        position.sums = EpochSums(
            sums.loss + loss_sum, sums.correct + (correct or 0.0), sums.samples + part.step_samples
        )
        position.step += 1
        position.global_step += 1
        self._folder.add_metrics(
            {
                "kind": "step",
                "epoch": position.epoch + 1,
                "step": position.step,
                "global_step": position.global_step,
                "samples": part.step_samples,
                "loss": loss_sum / part.step_samples,
                "accuracy": None if correct is None else correct / part.step_samples,
                "lr": lr,
                "grad_norm": grad_norm,
                "memory_bytes": self._guard.resident_bytes(),
            }
        )

    def _finish_epoch(self, evaluation: Evaluation | None) -> None:
        """Record the epoch, keep it if it is the best, and save."""
        position, sums = self.position, self.position.sums
        record = EpochRecord(
            epoch=position.epoch + 1,
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
        position.history = (*position.history, record)
        position.epoch, position.step, position.sums = position.epoch + 1, 0, EpochSums()
        if evaluation is not None:
            score = evaluation.score
            if _is_better(score, evaluation.loss, position.best):
                position.best = Best(record.epoch, score.name, score.value, evaluation.loss)
                self._write(self._folder.best)
        self.save()

    def _write(self, path: Path) -> None:
        position, plan = self.position, self._plan
        info = CheckpointInfo(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            bundle_hash=plan.bundle_hash,
            data_fingerprint=plan.data.fingerprint,
            samples=len(plan.data),
            settings=plan.settings,
            metrics_bytes=self._folder.sync_metrics(),
            **vars(position),
        )
        state = self._train.state
        write_checkpoint(path, state.inputs("param", *state.slots), info)

    def _save_is_due(self) -> bool:
        every = self._plan.checkpoint_every_steps
        if every is not None:
            return self.position.global_step % every == 0
        return time.monotonic() - self._last_save_s >= CHECKPOINT_INTERVAL_S

    def _after_batch(self, done: int, count: int, tally: Tally) -> bool:
        where = f"validation after epoch {self.position.epoch + 1}"
        self._guard.check(where)
        self._service.alive(where)
        self._validation, self._val_batches = (tally.loss(), tally.score()), count
        if done < count:  # the last is told with the figures of all
            self._tell("validate", done, count)
        return self._stop.signal_name is None

    def _where(self, step: int) -> str:
        return f"epoch {self.position.epoch + 1}, step {step + 1}"

    def _tell(self, phase: Phase, step: int, steps: int) -> None:
        on_progress = self._plan.on_progress
        if on_progress is None:
            return
        sums, seconds = self.position.sums, time.monotonic() - self._epoch_start_s
        training = phase == "train" and seconds > 0
        val_loss, score = self._validation or (None, None)
        on_progress(
            Progress(
                phase=phase,
                epoch=self.position.epoch + 1,
                epochs=self._plan.settings.epochs,
                step=step,
                steps=steps,
                loss=sums.loss / sums.samples if sums.samples else None,
                accuracy=self._accuracy() if sums.samples else None,
                lr=self._lr(max(0, self.position.global_step - 1)),
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
        sums = self.position.sums
        return sums.correct / sums.samples if self._plan.loss.task.loss in SCORED_LOSSES else None


def _is_better(score: Score, loss: float, best: Best | None) -> bool:
    """By the score; equal ones by the loss. A best by another figure than now is beaten."""
    if best is None or best.metric != score.name:
        return True
    sign = 1 if score.higher_is_better else -1
    return (sign * score.value, -loss) > (sign * best.value, -best.loss)


def _last_validation(position: Position) -> tuple[float, Score | None] | None:
    """What a resumed run knows of the validation before it was interrupted."""
    last = position.history[-1] if position.history else None
    if last is None or last.val_loss is None or position.best is None:
        return None
    name = position.best.metric
    value = last.val_loss if name == "loss" else last.val_metrics.get(name)
    return last.val_loss, None if value is None else Score(name, value, name != "loss")
