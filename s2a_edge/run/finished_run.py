"""A run folder together with its bundle: evaluate or export what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.data import DataSet
from s2a_edge.run.device_tensor import Array
from s2a_edge.run.engine_choice import EngineChoice, EngineName, choose_engine
from s2a_edge.run.export import describe_output, export
from s2a_edge.run.metrics import Evaluation
from s2a_edge.run.run_folder import RUN_NAME, Which, checkpoint_path, read_run
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import CheckpointError


def open_bundle(run: Path, bundle: Path | None = None) -> Bundle:
    """The bundle that a run was started with.

    Args:
        run: the run folder.
        bundle: where the bundle is now, if it was moved since.

    Raises:
        CheckpointError: it is not there any more, or is another one.
        BundleError: it cannot be used.
    """
    record = read_run(run)
    path = Path(record.bundle) if bundle is None else bundle
    if not path.exists():
        raise CheckpointError(
            where=f"{run / RUN_NAME}",
            expected=f"the bundle at {path}",
            got="nothing there",
            todo="put the bundle back, or say where it is with --bundle",
        )
    opened = Bundle.open(path)
    if opened.hash != record.bundle_hash:
        raise CheckpointError(
            where=str(path),
            expected=f"bundle {record.bundle_hash[:12]}, which the run was started with",
            got=f"bundle {opened.hash[:12]}",
            todo="say where the right bundle is with --bundle",
        )
    return opened


@dataclass(frozen=True)
class Exported:
    """An exported model: its file, and in words what its output is."""

    path: Path
    output: str


def evaluate_run(
    path: Path,
    data: DataSet | Path | str,
    *,
    checkpoint: Which | None = None,
    bundle: Path | None = None,
    budget_bytes: int | None = None,
    threads: int | None = None,
    engine: EngineName = "cpu",
    on_engine: Callable[[EngineChoice], None] = lambda chosen: None,
) -> Evaluation:
    """Loss and figures of a run's checkpoint, or of a bundle as it was packed.

    Args:
        path: a run folder; or a bundle, folder or ``.s2a``.
        data: labelled samples, or their path.
        checkpoint: of a run; None: the best, or else the last.
        bundle: where the run's bundle is now, if it was moved.
        budget_bytes: most memory the process may hold; None: not limited.
        threads: threads of one operator; None: all usable cores.
        engine: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where it can be had.
        on_engine: told what ``auto`` chose.

    Raises:
        CheckpointError: the run has no such checkpoint, or its bundle is gone.
        DataError: the data cannot be used.
        BudgetError: above the budget.
    """
    is_run = (path / RUN_NAME).is_file()
    with open_bundle(path, bundle) if is_run else Bundle.open(path) as opened:
        chosen = choose_engine(engine, opened.manifest, budget_bytes)
        if chosen.is_news:
            on_engine(chosen)
        trainer = Trainer(opened, budget_bytes=budget_bytes, threads=threads,
                          provider=chosen.provider, training=False,
                          cuda_context_bytes=chosen.cuda_context_bytes)
        if is_run:
            trainer.load_checkpoint(checkpoint_path(path, checkpoint))
        return trainer.evaluate(data)


def export_run(
    run: Path, out: Path, *, checkpoint: Which | None = None, bundle: Path | None = None
) -> Exported:
    """Write a run's checkpoint as a plain inference ONNX model; no session is made.

    Args:
        run: the run folder.
        out: the ONNX file to create or replace.
        checkpoint: None: the best, or else the last.
        bundle: where the run's bundle is now, if it was moved.

    Returns:
        ``out``, and what the model's output means.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not of this bundle.
        StorageError: no space, no permission.
    """
    with open_bundle(run, bundle) as opened:
        file = checkpoint_path(run, checkpoint)
        info, tensors = read_checkpoint(file)
        if info.bundle_hash != opened.hash:
            raise CheckpointError(
                where=str(file),
                expected=f"a checkpoint of bundle {opened.hash[:12]}",
                got=f"one of bundle {info.bundle_hash[:12]}",
                todo="the run folder holds files of another run: use the one it came from",
            )
        path = export(opened, _parameters(tensors), out, info.settings.target_scaling)
        return Exported(path, describe_output(opened.manifest))


def _parameters(tensors: dict[str, Array]) -> dict[str, Array]:
    role = "param."
    return {key.removeprefix(role): v for key, v in tensors.items() if key.startswith(role)}
