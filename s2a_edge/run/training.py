"""One run from rehearsal to end, stepping down to smaller micro-batches where memory gets short.

What a failed micro-batch leaves behind is a set of accumulators of which some may have been
written: they are zeroed, and the whole optimizer step is computed again from the same parameters.
The order of samples does not depend on the micro-batch, so the run goes on as it would have, up to
the order in which float32 gradients are added. Only the optimizer changes parameters; it is not
ended from outside, and if its own memory does not suffice the last checkpoint is taken.
"""

from __future__ import annotations

from collections.abc import Callable

from s2a_edge.run.fit import Fit
from s2a_edge.run.fit_plan import FitPlan, Position
from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.report import RunSummary, rehearsing
from s2a_edge.run.run_folder import RunFolder
from s2a_edge.run.sessions import Sessions
from s2a_edge.run.start import take_last_checkpoint
from s2a_edge.run.state import TrainingState
from s2a_edge.run.step import placed
from s2a_edge.run.step_down import StepDown, remember, smaller
from s2a_edge.run.stop_request import StopRequest
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import Setting

OnStepDown = Callable[[StepDown], None]


class Training:
    """What one call of ``Trainer.fit`` works with, while the folder is held and the guard watches.

    Args:
        manifest: of the bundle.
        sessions: of the micro-batch to begin with; exchanged on the way.
        state: what is trained.
        guard: watches the memory, already running.
        setting: what requirements depend on here.
        plan: what to work on.
        folder: of the run.
        stop: a signal that arrived.
        start: begins the run, or takes its last checkpoint; called after the rehearsal.
        may_step_down: False: short memory ends the run.
        on_step_down: told of each.
    """

    def __init__(
        self,
        manifest: Manifest,
        sessions: Sessions,
        state: TrainingState,
        guard: MemoryGuard,
        setting: Setting,
        plan: FitPlan,
        folder: RunFolder,
        stop: StopRequest,
        start: Callable[[FitPlan, RunFolder], Position],
        *,
        may_step_down: bool = True,
        on_step_down: OnStepDown | None = None,
    ) -> None:
        self._manifest, self._sessions, self._state = manifest, sessions, state
        self._guard, self._setting = guard, setting
        self._plan, self._folder, self._stop = plan, folder, stop
        self._start = start
        self._may_step_down, self._on_step_down = may_step_down, on_step_down
        self._position: Position | None = None
        self.out_of_patience = False
        self.step_downs: tuple[StepDown, ...] = ()
        self.continues_with: StepDown | None = None
        """A step down that this process cannot make; the folder is ready for one that can."""

    def run(self) -> Position:
        """Train to the end, or until a signal.

        Raises:
            BudgetError: at the smallest micro-batch, or where stepping down is not possible; the
                last complete step is saved.
            S2AError: as :meth:`Fit.run`.
        """
        while True:
            error = self._attempt()
            if error is None:
                assert self._position is not None
                return self._position
            self._step_down(error)

    def summary(self, seconds: float) -> RunSummary:
        """What was done, once :meth:`run` has ended, in so many seconds."""
        position, sessions, scale = self._position, self._sessions, self._state.loss_scale
        assert position is not None
        ended_early = position.epoch < self._plan.settings.epochs
        return RunSummary(
            out=self._folder.path,
            epochs=position.epoch,
            steps=position.global_step,
            history=position.history,
            best_epoch=position.best.epoch if position.best else None,
            best_metric=position.best.metric if position.best else None,
            micro_batch=sessions.micro_batch,
            budget_bytes=self._guard.budget_bytes,
            arena_limit_bytes=sessions.arena_limit_bytes,
            peak_bytes=self._guard.peak_bytes,
            seconds=seconds,
            stopped_by=self._stop.signal_name if ended_early else None,
            out_of_patience=ended_early and self.out_of_patience,
            step_downs=self.step_downs,
            skipped_steps=0 if scale is None else scale.skipped_steps,
            loss_scale=None if scale is None else scale.value,
        )

    def _attempt(self) -> BudgetError | None:
        """Rehearse and train with the present micro-batch; the error if memory got short."""
        fit: Fit | None = None
        try:
            self._rehearse()
            position = self._position or self._start(self._plan, self._folder)
            self._position = position
            fit = self._fit(position)
            fit.run()
        except BudgetError as error:
            if fit is not None and fit.updating:
                # The steps since are then computed again.
                self._position = take_last_checkpoint(self._state, self._plan, self._folder)
            return error
        self.out_of_patience = fit.out_of_patience
        return None

    def _fit(self, position: Position) -> Fit:
        sessions = self._sessions
        return Fit(
            self._plan,
            sessions.train,
            sessions.evaluator if sessions.evaluates else None,
            self._folder,
            self._guard,
            self._stop,
            position,
        )

    def _step_down(self, error: BudgetError) -> None:
        """Change to a smaller micro-batch, or raise ``error``."""
        sessions = self._sessions
        needed = None
        if self._may_step_down:
            needed = smaller(self._manifest, sessions.needed, error.missing_bytes, self._setting)
        if needed is None:
            raise _final(error) from error
        done = 0 if self._position is None else self._position.global_step
        step_down = StepDown.now(
            sessions.micro_batch, needed.micro_batch, done, f"{error.where}: {error.got}"
        )
        remember(self._folder.path, step_down)
        if not sessions.changeable:
            self.continues_with = step_down
            raise error
        _let_go_of_frames(error)
        sessions.change(needed)
        self._guard.rearm(sessions.device_bytes)
        self.step_downs = (*self.step_downs, step_down)
        self._folder.add_metrics({"kind": "step_down", **vars(step_down)})
        if self._on_step_down is not None:
            self._on_step_down(step_down)

    def _rehearse(self) -> None:
        """Run everything once, so that whatever does not fit fails now; the state is unchanged."""
        plan, guard = self._plan, self._guard
        if plan.on_progress is not None:
            now_bytes, peak_bytes = guard.resident_bytes(), guard.peak_bytes
            epochs = plan.settings.epochs
            plan.on_progress(rehearsing(epochs, now_bytes, peak_bytes, guard.budget_bytes))
        before = self._state.snapshot()
        position = self._position or Position()
        where = f"rehearsal before epoch {position.epoch + 1}, step {position.step + 1}"
        try:
            train = self._sessions.train
            if self._sessions.evaluates:
                self._sessions.evaluator.rehearse()
            train.rehearse(plan.settings.optimizer)
            guard.check("memory guard")
        except BudgetError as error:
            raise placed(error, where) from error
        finally:
            self._state.restore(before)


def _let_go_of_frames(error: BaseException) -> None:
    """An error's frames, and those of what led to it, hold the old sessions."""
    chain: list[BaseException] = [error]
    while chain:
        one = chain.pop()
        chain += [other for other in (one.__cause__, one.__context__) if other is not None]
        one.__traceback__ = one.__cause__ = one.__context__ = None


def _final(error: BudgetError) -> BudgetError:
    """The same error where no smaller micro-batch is left to try."""
    return BudgetError(
        where=error.where,
        expected=error.expected,
        got=error.got,
        todo="end other programs or give a larger --budget, then --resume, or pack again with a "
        "smaller --micro-batch; the last checkpoint is intact",
        missing_bytes=error.missing_bytes,
    )
