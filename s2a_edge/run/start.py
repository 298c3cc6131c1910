"""How a run begins: with a record of its own, or where the last checkpoint of it was taken."""

from __future__ import annotations

import platform
import re
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from s2a_edge import __version__
from s2a_edge.run.checkpoint import CheckpointInfo, read_checkpoint
from s2a_edge.run.fit_plan import FitPlan, Position, scaling_of
from s2a_edge.run.installed_runtime import runtime_name
from s2a_edge.run.run_folder import FORMAT, FORMAT_VERSION, RunFolder, RunRecord
from s2a_edge.run.settings import FitSettings, differences
from s2a_edge.run.state import TrainingState
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import CheckpointError, DataError, UsageError
from s2a_edge.spec.manifest import Task

_UNPACKED = re.compile(r"(.+)\.unpacked-[0-9a-f]{12}")


def begin_run(
    bundle: Bundle,
    state: TrainingState,
    scaling: TargetScaling | None,
    plan: FitPlan,
    folder: RunFolder,
) -> Position:
    """A new run from the current parameters; writes its record.

    Args:
        bundle: what is trained.
        state: its parameters; put into terms of the run's own target scaling.
        scaling: what the parameters follow now; None for tasks without numbers.
        plan: what the run works on.
        folder: of the run, without a checkpoint.

    Raises:
        StorageError: the record cannot be written.
    """
    parameters, manifest = state.read("param"), bundle.manifest
    wanted = scaling_of(manifest.task, plan.settings)
    if scaling is not None and wanted is not None:
        parameters = scaling.replaced(wanted, parameters, manifest)
    state.load_parameters(parameters, where="current parameters")
    folder.begin(_new_record(bundle, plan))
    return Position()


def take_last_checkpoint(state: TrainingState, plan: FitPlan, folder: RunFolder) -> Position:
    """Puts ``state`` and the folder's records back to where the last checkpoint was taken.

    Raises:
        CheckpointError: it cannot be read, or bundle, data or settings differ from ``plan``'s.
    """
    info, tensors = read_checkpoint(folder.last)
    position = _resumed_position(info, plan, str(folder.last))
    state.restore(tensors, where=str(folder.last))
    state.loss_scale = info.loss_scale
    folder.cut_metrics(info.metrics_bytes)
    return position


def _new_record(bundle: Bundle, plan: FitPlan) -> RunRecord:
    """What ``run.json`` of a new run says."""
    return RunRecord(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bundle=str(_lasting_path(bundle)),
        bundle_hash=plan.bundle_hash,
        data=str(plan.data.path.resolve()),
        val=None if plan.val is None else str(plan.val.path.resolve()),
        effective_batch=bundle.manifest.recipe.effective_batch,
        settings=plan.settings,
        versions={
            "s2a-edge": __version__,
            "onnxruntime": runtime_name(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def require_suitable(settings: FitSettings, task: Task, *, has_val: bool) -> None:
    """Raise UsageError for a setting that means nothing for the task or the data."""
    if settings.label_smoothing and task.loss not in ("cross_entropy", "bce"):
        raise UsageError(
            where="label smoothing",
            expected=f"none: {task.loss} has no labels",
            got=str(settings.label_smoothing),
            todo="leave it off",
        )
    if settings.patience is not None and not has_val:
        raise UsageError(
            where="patience",
            expected="validation data, to see which epoch is better",
            got="none",
            todo="give some with --val, or leave --patience off",
        )


def require_steps(plan: FitPlan) -> None:
    """Raise DataError unless an epoch has at least one optimizer step."""
    if not plan.steps_per_epoch:
        batch = plan.loss.effective_batch
        expected = f"at least {batch} samples, a full batch" if plan.full_batches else "samples"
        raise DataError(
            where=str(plan.data.path),
            expected=expected,
            got=str(len(plan.data) or "none"),
            todo="give more data, or pack with a smaller --batch",
        )


def require_resumable(out: Path) -> None:
    """Raise CheckpointError unless ``out`` is a folder; an empty one begins a new run."""
    if not out.is_dir():
        raise CheckpointError(
            where=f"--out {out}",
            expected="a run folder to resume",
            got="no such folder",
            todo="check the path, or start without --resume",
        )


def _resumed_position(info: CheckpointInfo, plan: FitPlan, where: str) -> Position:
    """Where a checkpoint's run stood, if it is the run that ``plan`` describes.

    Raises:
        CheckpointError: bundle, data or settings differ; names what.
    """
    differing = differences(plan.settings, info.settings)
    if info.bundle_hash != plan.bundle_hash:
        differing.append(f"bundle {plan.bundle_hash[:12]} (was {info.bundle_hash[:12]})")
    if info.data_fingerprint != plan.data.fingerprint:
        differing.append(f"data of {len(plan.data)} samples (was {info.samples})")
    if differing:
        raise CheckpointError(
            where=where,
            expected="the bundle, data and settings that the run was started with",
            got=", ".join(differing),
            todo="resume with the same, or start another run with another --out",
        )
    return Position(info.epoch, info.step, info.global_step, info.sums, info.history, info.best)


def _lasting_path(bundle: Bundle) -> Path:
    """The bundle as the user gave it: of an unpacked ``.s2a`` the file, not its cache folder."""
    folder = bundle.path.resolve()
    cached = _UNPACKED.fullmatch(folder.name)
    packed = folder.parent / cached[1] if cached else folder
    return packed if packed.exists() else folder
