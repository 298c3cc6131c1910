"""A bundle's parameters as they are now: evaluated, exported, taken from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.data import DataSet, open_data
from s2a_edge.run.device_tensor import Array
from s2a_edge.run.export import export
from s2a_edge.run.fit_plan import scaling_of
from s2a_edge.run.guard import MemoryGuard
from s2a_edge.run.metrics import Evaluation, Tally
from s2a_edge.run.run_folder import checkpoint_path
from s2a_edge.run.sessions import Sessions
from s2a_edge.run.state import TrainingState
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import CheckpointError

Data = DataSet | Path | str


class TunedModel:
    """What can be done with parameters besides training them; the base of ``Trainer``.

    Args:
        bundle: an open bundle.
        state: its trainables.
        sessions: bound to them.
        guard: watches the memory.
    """

    def __init__(
        self, bundle: Bundle, state: TrainingState, sessions: Sessions, guard: MemoryGuard
    ) -> None:
        self.bundle, self.state = bundle, state
        self._sessions, self._guard = sessions, guard
        self.steps_done = 0
        self.target_scaling: TargetScaling | None = None
        """Of regressed numbers: what the parameters follow; None before anything was trained."""

    @property
    def peak_bytes(self) -> int:
        """The most memory the process held since the last step, fit or evaluation began."""
        return self._guard.peak_bytes

    def evaluate(self, data: Data) -> Evaluation:
        """Loss and figures of the current parameters; which figures depends on the task.

        Raises:
            DataError: the data cannot be used.
            BudgetError: above the budget.
        """
        self._sessions.load_all()
        samples = self._open(data)

        def after_batch(done: int, count: int, tally: Tally) -> bool:
            self._guard.check(f"evaluation, batch {done} of {count}")
            return True

        self._sessions.engine.control.rearm()
        with self._guard:
            evaluation = self._sessions.evaluator.evaluate(
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
            self.state.loss_scale = info.loss_scale
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

    def _open(self, data: Data) -> DataSet:
        if not isinstance(data, str | Path):
            return data
        return open_data(data, self.bundle.manifest, self.bundle.path)


def _parameters(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The trainables in a checkpoint, by name; what the optimizer keeps is left out."""
    role = "param."
    return {n.removeprefix(role): v for n, v in tensors.items() if n.startswith(role)}
