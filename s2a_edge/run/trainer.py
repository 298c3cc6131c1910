"""Fine-tuning of one bundle inside one memory budget: the run side's public face."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from s2a_edge.run import memory_check
from s2a_edge.run.class_weights import ClassWeights, resolve_class_weights
from s2a_edge.run.data import DataSet
from s2a_edge.run.device_tensor import Array, Provider
from s2a_edge.run.fit_plan import FitPlan, Position, data_scaling, loss_inputs_of, scaling_of
from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.headroom import HeadroomWatch
from s2a_edge.run.heap import return_freed_memory
from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.installed_runtime import require_compatible
from s2a_edge.run.kernel_choice import kernel_library
from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.loss_scale import LossScale
from s2a_edge.run.report import OnProgress, RunSummary
from s2a_edge.run.run_folder import RunFolder, refuse_existing
from s2a_edge.run.sessions import Sessions, no_evaluation
from s2a_edge.run.settings import FitSettings
from s2a_edge.run.start import (
    begin_run,
    require_resumable,
    require_steps,
    require_suitable,
    take_last_checkpoint,
)
from s2a_edge.run.state import TrainingState
from s2a_edge.run.step import StepResult
from s2a_edge.run.step_down import StepDown, carried_over, forget
from s2a_edge.run.stop_request import StopRequest
from s2a_edge.run.training import OnStepDown, Training
from s2a_edge.run.tuned_model import Data, TunedModel
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.kernels import Kernels
from s2a_edge.spec.requirement import Requirement, requirement


class Trainer(TunedModel):
    """Trains, evaluates and exports one bundle; no torch, no onnx.

    Args:
        bundle: an open bundle, or its path.
        budget_bytes: most memory the process may hold, mapped weights included; None: only the
            runtime's arena is limited, to the plan.
        micro_batch: rows per run of the training graph; None: the largest that fits.
        threads: threads of one operator; None: all usable cores.
        provider: ``"cpu"`` or ``"cuda"``.
        seed: of order and augmentation.
        training: False: for evaluation and export alone; the training graph is never loaded.
        kernels: ``"native"``: the form of the step with kernels in C, ``"portable"``: the other,
            ``"auto"``: native where this machine can compile them.
        evaluation: False: nothing will be evaluated or validated; the evaluation graph is neither
            loaded nor counted.
        headroom_bytes: memory of the machine, and of the control group, that must stay free: what
            is left beside it bounds the micro-batch, and is watched while training; None: two
            percent, within 8 and 256 MiB; 0: nothing is watched but the budget.
        cuda_context_bytes: what CUDA takes when it starts (:mod:`s2a_edge.run.engine_choice`); 0:
            not counted.

    Attributes:
        native: whether kernels in C run.

    Raises:
        BudgetError: training does not fit the budget, or not into what is left around the process
            (available memory, control groups) beside ``headroom_bytes``; says what is missing.
        BundleError: the bundle cannot be used.
        DeviceError: the installed onnxruntime does not suit.
        UsageError: the bundle has no such micro-batch.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        budget_bytes: int | None = None,
        micro_batch: int | None = None,
        threads: int | None = None,
        provider: Provider = "cpu",
        seed: int = 0,
        training: bool = True,
        kernels: Kernels = "auto",
        headroom_bytes: int | None = None,
        evaluation: bool = True,
        cuda_context_bytes: int = 0,
    ) -> None:
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.budget_bytes = budget_bytes
        self.seed = seed
        require_compatible(opened.manifest.compat, provider)
        return_freed_memory()
        self._setting = memory_check.measure_setting(
            provider, threads, evaluation=evaluation, cuda_context_bytes=cuda_context_bytes
        )
        library = kernel_library(opened, kernels, provider) if training else None
        headroom = None if headroom_bytes == 0 else HeadroomWatch(headroom_bytes)
        needed = memory_check.choose_form(
            opened,
            budget_bytes,
            micro_batch,
            self._setting,
            kernels,
            native=library is not None,
            room=headroom.room() if headroom is not None and training else None,
        )
        manifest = opened.manifest
        self.native = opened.is_native
        self._asked_micro_batch = micro_batch
        recipe = manifest.recipe
        scale = LossScale() if recipe.precision == "fp16" else None
        state = TrainingState(manifest.trainables, recipe.optimizer, provider, scale)
        sessions = Sessions(
            opened,
            state,
            needed,
            provider=provider,
            threads=threads,
            training=training,
            kernels=library if self.native else None,
        )
        guard = MemoryGuard(
            budget_bytes,
            device_bytes=sessions.device_bytes,
            on_exceeded=sessions.terminate,
            headroom=headroom,
        )
        super().__init__(opened, state, sessions, guard)
        state.load_parameters(
            opened.initial_parameters(), where=f"{opened.path}/adapters.safetensors"
        )
        self.continues_with: StepDown | None = None
        """A step down that this process could not make (onnxruntime before 1.23): the run was
        saved, and one that resumes it in another process goes on with the smaller micro-batch."""

    @property
    def micro_batch(self) -> int:
        """Rows per run of the training graph; a step down changes it."""
        return self._sessions.micro_batch

    @property
    def requirement(self) -> Requirement:
        """What training with this micro-batch needs."""
        return self._sessions.needed

    def step(
        self,
        inputs: Mapping[str, Array],
        labels: Array | None = None,
        *,
        lr: float,
        hyperparameters: Hyperparameters | None = None,
    ) -> StepResult:
        """One optimizer step.

        Args:
            inputs: by name, [k, *shape] as in ``bundle.manifest.inputs``; 1 <= k <= effective
                batch. Every sample weighs 1 / effective batch, so a smaller k is a smaller step.
            labels: class indices int [k], or soft labels float32 [k, C] whose rows add up to 1; of
                several labels 0 to 1 [k, C]; numbers [k, C], standardised by ``target_scaling``.
                None for a graph that is its own loss, whose k is the effective batch.
            lr: learning rate.
            hyperparameters: weight decay, clipping and the like; None: the defaults.

        Raises:
            DataError: names, shapes or targets do not suit the bundle.
            NonFiniteLossError: loss or gradient; parameters are unchanged.
            BudgetError: the step exceeds the budget.
        """
        self._sessions.engine.control.rearm()
        where, manifest = f"step {self.steps_done + 1}", self.bundle.manifest
        batch = manifest.recipe.effective_batch
        with self._guard:
            result = self._sessions.train.run(
                inputs,
                labels,
                LossInputs(manifest.task, batch, scaling=self.target_scaling),
                lr=lr,
                step=self.steps_done,
                settings=hyperparameters or Hyperparameters(),
                where=where,
            )
            self.steps_done += 1
            self._guard.check(where)
        return result

    def fit(
        self,
        data: Data,
        *,
        val: Data | None = None,
        epochs: int,
        lr: float,
        out: Path | str,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        max_norm: float | None = None,
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights | None = None,
        standardize: bool = True,
        patience: int | None = None,
        augment: bool = True,
        resume: bool = False,
        on_progress: OnProgress | None = None,
        checkpoint_every_steps: int | None = None,
        step_down: bool = True,
        on_step_down: OnStepDown | None = None,
    ) -> RunSummary:
        """Train from the current parameters; everything of the run is kept in ``out``.

        A rehearsal of one train, one optimizer and one eval step comes first. SIGTERM and SIGINT
        end the run early, saved. On the CPU a resumed run computes the same bits as one that was
        never interrupted. Where memory gets short, the run goes on with a smaller micro-batch of
        the bundle and the same effective batch (:mod:`s2a_edge.run.training`).

        Args:
            data: training samples, or the path of class folders or an ``.npz``.
            val: validation samples, evaluated after every epoch; decides which epoch is best.
            epochs: passes over the data.
            lr: peak learning rate, after the warm-up; a cosine leads from there to 0.
            out: run folder.
            weight_decay: decoupled.
            momentum: of SGD.
            betas: of AdamW.
            eps: of AdamW.
            max_norm: clip the global gradient norm to this; None: no clipping.
            warmup_epochs: length of the linear warm-up.
            label_smoothing: share of each target that is spread over all classes; of several
                labels, the share of its way to 1/2 that each target moves.
            class_weights: one number for each class, or ``"balanced"``: inversely proportional to
                how often classes occur in ``data``. :mod:`s2a_edge.run.loss_inputs` says how they
                enter.
            standardize: learn regressed numbers as multiples of their deviation from their mean,
                both taken from ``data``; undone in evaluation and on export.
            patience: end after this many epochs without a better one in ``val``.
            augment: random flips and crops of images.
            resume: go on from ``out``'s last checkpoint, if it has one.
            on_progress: told after every micro-batch.
            checkpoint_every_steps: optimizer steps between checkpoints, besides those at each
                epoch's end; None: every ten minutes.
            step_down: False: end the run where memory gets short, saved.
            on_step_down: told of each change to a smaller micro-batch.

        Raises:
            BudgetError: it does not fit, or did not while running; the last checkpoint is intact.
            NonFiniteLossError: training diverged; the last checkpoint is kept.
            CheckpointError: ``out`` cannot be resumed with this bundle, data or settings.
            UsageError: a number is out of its range, ``out`` holds a run and ``resume`` is off, or
                ``val`` is given to a trainer without evaluation.
            DataError: the data cannot be used.
            StorageError: ``out`` cannot be written.
        """
        start_s = time.monotonic()
        task = self.bundle.manifest.task
        opened = self._open(data)
        settings = FitSettings(
            epochs=epochs,
            lr=float(lr),
            warmup_epochs=float(warmup_epochs),
            label_smoothing=float(label_smoothing),
            augment=augment,
            seed=self.seed,
            optimizer=Hyperparameters(
                weight_decay=float(weight_decay),
                max_norm=None if max_norm is None else float(max_norm),
                momentum=float(momentum),
                betas=(float(betas[0]), float(betas[1])),
                eps=float(eps),
            ),
            class_weights=resolve_class_weights(class_weights, task, opened.targets),
            target_scaling=data_scaling(task, opened) if standardize else None,
            patience=patience,
        )
        plan = self._plan(opened, val, settings, checkpoint_every_steps, on_progress)
        self._prepare(Path(out), resume=resume)
        self._sessions.engine.control.rearm()
        with RunFolder(Path(out)) as folder, StopRequest() as stop, self._guard:
            training = Training(
                self.bundle.manifest,
                self._sessions,
                self.state,
                self._guard,
                self._setting,
                plan,
                folder,
                stop,
                self._start,
                may_step_down=step_down,
                on_step_down=on_step_down,
            )
            try:
                position = training.run()
            finally:
                self.continues_with = training.continues_with
        self.steps_done = position.global_step
        self.target_scaling = scaling_of(task, settings)
        return training.summary(time.monotonic() - start_s)

    def _plan(
        self,
        data: DataSet,
        val: Data | None,
        settings: FitSettings,
        checkpoint_every_steps: int | None,
        on_progress: OnProgress | None,
    ) -> FitPlan:
        """What a run works on, if bundle, data, settings and memory suit one another."""
        manifest = self.bundle.manifest
        require_suitable(settings, manifest.task, has_val=val is not None)
        if val is not None and not self._setting.evaluation:
            raise no_evaluation("val")
        plan = FitPlan(
            data=data,
            val=None if val is None else self._open(val),
            settings=settings,
            bundle_hash=self.bundle.hash,
            loss=loss_inputs_of(manifest, settings),
            checkpoint_every_steps=checkpoint_every_steps,
            on_progress=on_progress,
        )
        require_steps(plan)
        data_sets = [data] if plan.val is None else [data, plan.val]
        memory_check.require_room_for_data(
            manifest, self.micro_batch, self.budget_bytes, self._setting, data_sets
        )
        return plan

    def _prepare(self, out: Path, *, resume: bool) -> None:
        """A new run needs a free folder; a resumed one that stepped down goes on so."""
        if not resume:
            refuse_existing(out)
            forget(out)
            return
        require_resumable(out)
        smaller = carried_over(out, self.micro_batch, asked=self._asked_micro_batch is not None)
        if smaller is not None:
            manifest = self.bundle.manifest
            needed = requirement(manifest, micro_batch=smaller, setting=self._setting)
            self._sessions.change(needed)

    def _start(self, plan: FitPlan, folder: RunFolder) -> Position:
        """Begin a new run, or go on where the folder's last checkpoint was taken."""
        if folder.last.exists():
            return take_last_checkpoint(self.state, plan, folder)
        return begin_run(self.bundle, self.state, self.target_scaling, plan, folder)
