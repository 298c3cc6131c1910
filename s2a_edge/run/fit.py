"""The training loop: epochs of optimizer steps, validation, checkpoints, and a clean way out.

What can be interrupted is interrupted between two micro-batches, and what is saved is the state
after the last complete optimizer step: a resumed run computes exactly what it would have computed.
"""

from __future__ import annotations

import contextlib
import math
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
from s2a_edge.run.fit_report import FitReport
from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.metrics import Evaluation, Score, Tally
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
        evaluator: bound to the same state; None where nothing is to be validated.
        folder: where checkpoints and metrics go.
        guard: watches the memory, already running.
        stop: a signal that arrived.
        position: where to start; new runs start at zero.
    """

    def __init__(
        self,
        plan: FitPlan,
        train: TrainStep,
        evaluator: Evaluator | None,
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
        self._report = FitReport(plan, folder, guard, position, self._lr)
        self.updating = False
        """An optimizer run began and did not end: parameters may be half updated."""
        self._sample_weight = (-1, 0.0)  # of which step, and what it is
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
        if not self.updating:
            with contextlib.suppress(StorageError):
                self.save()

    def _run_epoch(self) -> bool:
        """The rest of the current epoch; False if a signal ended it."""
        self._report.begin_epoch()
        if not self._train_epoch():
            return False
        evaluation = None
        if self._plan.val is not None:
            assert self._evaluator is not None  # Trainer.fit asked for it
            evaluation = self._evaluator.evaluate(
                self._plan.val,
                scaling=self._plan.loss.scaling,
                after_batch=self._after_batch,
            )
            if evaluation is None:
                return False
            self._report.validated(evaluation)
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
                self._report.trained(part.samples)
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
        self.updating = True
        grad_norm = self._train.update(lr, position.global_step, settings, where=where)
        self.updating = False
        sums = position.sums
        if math.isfinite(loss_sum):  # in float16 an overflow of the forward pass skips the step
            position.sums = EpochSums(
                sums.loss + loss_sum,
                sums.correct + (correct or 0.0),
                sums.samples + part.step_samples,
            )
        position.step += 1
        position.global_step += 1
        self._report.step_done(
            part.step_samples, loss_sum, correct, lr, grad_norm, self._train.state.loss_scale
        )

    def _finish_epoch(self, evaluation: Evaluation | None) -> None:
        """Record the epoch, keep it if it is the best, and save."""
        position, record = self.position, self._report.epoch_done(evaluation)
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
            loss_scale=self._train.state.loss_scale,
            **vars(position),
        )
        state = self._train.state
        write_checkpoint(path, state.kept(), info)

    def _save_is_due(self) -> bool:
        every = self._plan.checkpoint_every_steps
        if every is not None:
            return self.position.global_step % every == 0
        return time.monotonic() - self._last_save_s >= CHECKPOINT_INTERVAL_S

    def _after_batch(self, done: int, count: int, tally: Tally) -> bool:
        where = f"validation after epoch {self.position.epoch + 1}"
        self._guard.check(where)
        self._service.alive(where)
        self._report.validating(done, count, tally)
        return self._stop.signal_name is None

    def _where(self, step: int) -> str:
        return f"epoch {self.position.epoch + 1}, step {step + 1}"


def _is_better(score: Score, loss: float, best: Best | None) -> bool:
    """By the score; equal ones by the loss. A best by another figure than now is beaten."""
    if best is None or best.metric != score.name:
        return True
    sign = 1 if score.higher_is_better else -1
    return (sign * score.value, -loss) > (sign * best.value, -best.loss)
