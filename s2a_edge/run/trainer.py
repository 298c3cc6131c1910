"""Fine-tuning of one bundle inside one memory budget: the run side's public face."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from s2a_edge.run import memory_check
from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.class_weights import ClassWeights, resolve_class_weights
from s2a_edge.run.data import DataSet, open_data
from s2a_edge.run.device_tensor import Array, Provider
from s2a_edge.run.engine import Engine, require_compatible
from s2a_edge.run.evaluate import Evaluator
from s2a_edge.run.export import export
from s2a_edge.run.fit import Fit
from s2a_edge.run.fit_plan import FitPlan, Position, data_scaling, loss_inputs_of, scaling_of
from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.heap import return_freed_memory
from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.kernel_choice import kernel_library
from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.metrics import Evaluation, Tally
from s2a_edge.run.report import OnProgress, RunSummary, rehearsing
from s2a_edge.run.run_folder import RunFolder, checkpoint_path, refuse_existing
from s2a_edge.run.settings import FitSettings
from s2a_edge.run.start import (
    new_record,
    require_resumable,
    require_steps,
    require_suitable,
    resumed_position,
)
from s2a_edge.run.state import TrainingState
from s2a_edge.run.step import StepResult, TrainStep
from s2a_edge.run.stop_request import StopRequest
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import CheckpointError
from s2a_edge.spec.kernels import Kernels
from s2a_edge.spec.requirement import Requirement

Data = DataSet | Path | str


class Trainer:
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

    Attributes:
        native: whether kernels in C run.

    Raises:
        BudgetError: training does not fit the budget; says what is missing.
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
    ) -> None:
        self._training = training
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.budget_bytes = budget_bytes
        self.seed = seed
        require_compatible(self.bundle.manifest.compat, provider)
        return_freed_memory()
        self._setting = memory_check.measure_setting(provider, threads)
        library = kernel_library(self.bundle, kernels, provider) if training else None
        self.requirement: Requirement = memory_check.choose_form(
            self.bundle, budget_bytes, micro_batch, self._setting, kernels,
            native=library is not None)
        manifest = self.bundle.manifest
        self.native = library is not None and self.bundle.is_native
        self.micro_batch = self.requirement.micro_batch
        self._arena_limit_bytes = memory_check.arena_limit(self.bundle, self.requirement, provider)
        self._engine = Engine(
            arena_limit_bytes=self._arena_limit_bytes,
            provider=provider,
            threads=threads,
            weights=self.bundle.weights() if provider == "cpu" else None,
            kernels=library if self.native else None,
        )
        self._guard = MemoryGuard(
            budget_bytes,
            device_bytes=0 if provider == "cpu" else self._arena_limit_bytes,
            on_exceeded=self._engine.control.terminate,
        )
        self.state = TrainingState(manifest.trainables, manifest.recipe.optimizer, provider)
        self.state.load_parameters(
            self.bundle.initial_parameters(), where=f"{self.bundle.path}/adapters.safetensors"
        )
        self.steps_done = 0
        self.target_scaling: TargetScaling | None = None
        """Of regressed numbers: what the parameters follow; None before anything was trained."""

    @property
    def peak_bytes(self) -> int:
        """The most memory the process held since the last step, fit or evaluation began."""
        return self._guard.peak_bytes

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
        self._engine.control.rearm()
        where, manifest = f"step {self.steps_done + 1}", self.bundle.manifest
        batch = manifest.recipe.effective_batch
        with self._guard:
            result = self._train.run(
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
    ) -> RunSummary:
        """Train from the current parameters; everything of the run is kept in ``out``.

        A rehearsal of one train, one optimizer and one eval step comes first. SIGTERM and SIGINT
        end the run early, saved. On the CPU a resumed run computes the same bits as one that was
        never interrupted.

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

        Raises:
            BudgetError: it does not fit, or did not while running; the last checkpoint is intact.
            NonFiniteLossError: training diverged; the last checkpoint is kept.
            CheckpointError: ``out`` cannot be resumed with this bundle, data or settings.
            UsageError: a number is out of its range, or ``out`` holds a run and ``resume`` is off.
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
        require_suitable(settings, task, has_val=val is not None)
        plan = FitPlan(
            data=opened,
            val=None if val is None else self._open(val),
            settings=settings,
            bundle_hash=self.bundle.hash,
            loss=loss_inputs_of(self.bundle.manifest, settings),
            checkpoint_every_steps=checkpoint_every_steps,
            on_progress=on_progress,
        )
        require_steps(plan)
        self._require_room(plan)
        out = Path(out)
        if resume:
            require_resumable(out)
        else:
            refuse_existing(out)
        self._engine.control.rearm()
        with RunFolder(out) as folder, StopRequest() as stop, self._guard:
            self._rehearse(plan)
            position = self._start(plan, folder)
            fit = Fit(plan, self._train, self._evaluator, folder, self._guard, stop, position)
            fit.run()
        self.steps_done = position.global_step
        self.target_scaling = scaling_of(task, settings)
        return RunSummary(
            out=out,
            epochs=position.epoch,
            steps=position.global_step,
            history=position.history,
            best_epoch=position.best.epoch if position.best else None,
            best_metric=position.best.metric if position.best else None,
            micro_batch=self.micro_batch,
            budget_bytes=self.budget_bytes,
            arena_limit_bytes=self._arena_limit_bytes,
            peak_bytes=self.peak_bytes,
            seconds=time.monotonic() - start_s,
            stopped_by=stop.signal_name if position.epoch < epochs else None,
            out_of_patience=position.epoch < epochs and fit.out_of_patience,
        )

    def evaluate(self, data: Data) -> Evaluation:
        """Loss and figures of the current parameters; which figures depends on the task.

        Raises:
            DataError: the data cannot be used.
            BudgetError: above the budget.
        """
        if self._training:
            assert self._train  # all sessions before the first runs: see Engine.load
        samples = self._open(data)

        def after_batch(done: int, count: int, tally: Tally) -> bool:
            self._guard.check(f"evaluation, batch {done} of {count}")
            return True

        self._engine.control.rearm()
        with self._guard:
            evaluation = self._evaluator.evaluate(
                samples, scaling=self.target_scaling, after_batch=after_batch
            )
        assert evaluation is not None  # only after_batch could end it
        return evaluation

    def export(self, out: Path | str) -> Path:
        """Write the tuned model as plain inference ONNX; see :func:`s2a_edge.run.export.export`."""
        return export(self.bundle, self.state.read("param"), Path(out), self.target_scaling)

    def load_checkpoint(self, path: Path | str) -> None:
        """Take over parameters and optimizer state of a checkpoint file, or of a run folder's best.

        One that was pulled from a board without the optimizer's state gives parameters only.

        Raises:
            CheckpointError: it is not one of this bundle, or cannot be read.
        """
        path = Path(path)
        file = checkpoint_path(path) if path.is_dir() else path
        info, tensors = read_checkpoint(file)
        if info.bundle_hash != self.bundle.hash:
            raise CheckpointError(
                where=str(file),
                expected=f"a checkpoint of bundle {self.bundle.hash[:12]}",
                got=f"one of bundle {info.bundle_hash[:12]}",
                todo="use the bundle that the run was started with",
            )
        if all(name.startswith("param.") for name in tensors):
            self.state.load_parameters(_parameters(tensors), where=str(file))
        else:
            self.state.restore(tensors, where=str(file))
        self.steps_done = info.global_step
        self.target_scaling = scaling_of(self.bundle.manifest.task, info.settings)

    def start_from(self, path: Path | str) -> None:
        """Begin with the tuned values of a run, of this bundle or of one with equal trainables.

        Args:
            path: a checkpoint file, or a run folder, whose best is taken.

        Raises:
            CheckpointError: it cannot be read, or names the trainables that differ.
        """
        path = Path(path)
        file = checkpoint_path(path) if path.is_dir() else path
        info, tensors = read_checkpoint(file)
        self.state.load_parameters(_parameters(tensors), where=str(file))
        self.target_scaling = scaling_of(self.bundle.manifest.task, info.settings)

    @cached_property
    def _train(self) -> TrainStep:
        # The session that needs most comes last: what the others keep in the arena then lies
        # together at its start, and does not split the room that training needs in one piece.
        assert self._evaluator
        manifest = self.bundle.manifest
        graph = next(g for g in manifest.graphs.train if g.batch == self.micro_batch)
        return TrainStep(self._engine, self.bundle.path, manifest, graph, self.state)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._engine, self.bundle.path, self.bundle.manifest, self.state)

    def _open(self, data: Data) -> DataSet:
        if not isinstance(data, str | Path):
            return data
        return open_data(data, self.bundle.manifest, self.bundle.path)

    def _require_room(self, plan: FitPlan) -> None:
        data_sets = [plan.data] if plan.val is None else [plan.data, plan.val]
        memory_check.require_room_for_data(
            self.bundle.manifest, self.micro_batch, self.budget_bytes, self._setting, data_sets
        )

    def _rehearse(self, plan: FitPlan) -> None:
        """Run everything once, so that whatever does not fit fails now; the state is unchanged."""
        if plan.on_progress is not None:
            plan.on_progress(
                rehearsing(
                    plan.settings.epochs,
                    self._guard.resident_bytes(),
                    self.peak_bytes,
                    self.budget_bytes,
                )
            )
        before = self.state.snapshot()
        try:
            train = self._train
            self._evaluator.rehearse()
            train.rehearse(plan.settings.optimizer)
        finally:
            self.state.restore(before)
        self._guard.check("rehearsal, before epoch 1")

    def _start(self, plan: FitPlan, folder: RunFolder) -> Position:
        """Begin a new run, or go on where the folder's last checkpoint was taken."""
        if not folder.last.exists():
            parameters, manifest = self.state.read("param"), self.bundle.manifest
            now = scaling_of(manifest.task, plan.settings)
            if self.target_scaling is not None and now is not None:
                parameters = self.target_scaling.replaced(now, parameters, manifest)
            self.state.load_parameters(parameters, where="current parameters")
            folder.begin(new_record(self.bundle, plan))
            return Position()
        info, tensors = read_checkpoint(folder.last)
        position = resumed_position(info, plan, str(folder.last))
        self.state.restore(tensors, where=str(folder.last))
        folder.cut_metrics(info.metrics_bytes)
        return position


def _parameters(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The trainables in a checkpoint, by name; what the optimizer keeps is left out."""
    role = "param."
    return {n.removeprefix(role): v for n, v in tensors.items() if n.startswith(role)}
