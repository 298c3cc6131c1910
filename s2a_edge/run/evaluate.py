"""Loss and figures of the current parameters over a data set."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import cast

from s2a_edge.run.batch_inputs import BatchInputs
from s2a_edge.run.data import DataSet, MicroBatch, batches
from s2a_edge.run.engine import Engine
from s2a_edge.run.metrics import Evaluation, Tally, tally_for
from s2a_edge.run.state import TrainingState
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.task_ports import evaluation_outputs

AfterBatch = Callable[[int, int, Tally], bool]


class Evaluator:
    """The evaluation graph, bound to the parameters in training.

    Args:
        engine: runs it.
        folder: of the bundle.
        manifest: of the bundle.
        state: whose parameters are evaluated.
    """

    def __init__(
        self, engine: Engine, folder: Path, manifest: Manifest, state: TrainingState
    ) -> None:
        graph = manifest.graphs.eval
        self.batch = graph.batch
        self._task = manifest.task
        self._provider = engine.provider
        self._inputs = BatchInputs(engine, manifest.inputs, graph.batch)
        ports = evaluation_outputs(manifest.task, graph.batch)
        outputs = {name: engine.tensor(shape) for name, shape in ports.items()}
        (self._output,) = outputs.values()
        self._graph = engine.load(folder / graph.file)
        self._graph.bind({**self._inputs.tensors, **state.inputs("param")}, outputs)

    def rehearse(self) -> None:
        """Run once on whatever the inputs hold."""
        self._graph.run()

    def evaluate(
        self,
        data: DataSet,
        *,
        scaling: TargetScaling | None = None,
        after_batch: AfterBatch | None = None,
    ) -> Evaluation | None:
        """Evaluate on all samples, in the data set's order, without augmentation.

        A graph's own loss takes full batches only: samples at the end that do not fill one are
        left out, and the result says how many.

        Args:
            data: samples with targets.
            scaling: of regressed numbers, to be undone; None: as they are.
            after_batch: called with batches done, their number and the tally so far; False ends
                the evaluation.

        Returns:
            The result; None if ``after_batch`` ended it.

        Raises:
            DataError: there are no samples, or one cannot be read.
            NonFiniteLossError: an output is NaN or infinite.
            BudgetError: the arena is exhausted.
        """
        own_loss = self._task.loss == "output"
        count = len(data) // self.batch if own_loss else -(-len(data) // self.batch)
        if not count:
            raise DataError(
                where=str(data.path),
                expected=f"at least {self.batch} samples, a full batch" if own_loss else "samples",
                got=str(len(data) or "none"),
                todo="give more data" if len(data) else "give some data",
            )
        tally = tally_for(self._task, len(data), scaling, str(data.path))
        with closing(self._reader(data, drop_last=own_loss)) as parts:
            for number, part in enumerate(parts, start=1):
                self._inputs.write(part.inputs)
                self._graph.run()
                outputs = self._output.read()
                tally.add(outputs if own_loss else outputs[: part.samples], part.targets)
                if after_batch is not None and not after_batch(number, count, tally):
                    return None
        return tally.result()

    def _reader(self, data: DataSet, *, drop_last: bool) -> Generator[MicroBatch, None, None]:
        prefetch = self._provider != "cpu"
        parts = batches(
            data,
            self.batch,
            self.batch,
            shuffle=False,
            augment=False,
            prefetch=prefetch,
            drop_last=drop_last,
            buffers=self._inputs.buffers(2 if prefetch else 1),
        )
        return cast("Generator[MicroBatch, None, None]", parts)  # it can be closed
