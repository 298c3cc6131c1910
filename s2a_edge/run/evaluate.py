"""Loss and accuracy of the current parameters over a data set."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from s2a_edge.run.batch_inputs import BatchInputs
from s2a_edge.run.data import DataSet, MicroBatch, batches
from s2a_edge.run.engine import Engine
from s2a_edge.run.state import TrainingState
from s2a_edge.spec.errors import DataError, NonFiniteLossError
from s2a_edge.spec.manifest import Manifest


@dataclass(frozen=True)
class ClassCount:
    """Of one class: how many samples, how many of them classified correctly."""

    label: str
    samples: int
    correct: int


@dataclass(frozen=True)
class Evaluation:
    """Result over ``n`` samples.

    Attributes:
        loss: mean cross-entropy, without label smoothing.
        top1: share of samples whose largest logit is their class, 0..1.
        n: how many samples.
        per_class: counts in the order of the bundle's classes.
    """

    loss: float
    top1: float
    n: int
    per_class: tuple[ClassCount, ...]


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
        self._provider = engine.provider
        self._labels = _labels(manifest)
        self._inputs = BatchInputs(engine, manifest.inputs, graph.batch)
        self._logits = engine.tensor((graph.batch, manifest.task.classes))
        self._graph = engine.load(folder / graph.file)
        self._graph.bind(
            {**self._inputs.tensors, **state.inputs("param")}, {"logits": self._logits}
        )

    def rehearse(self) -> None:
        """Run once on whatever the inputs hold."""
        self._graph.run()

    def evaluate(
        self, data: DataSet, *, after_batch: Callable[[int, int], bool] | None = None
    ) -> Evaluation | None:
        """Evaluate on all samples, in the data set's order, without augmentation.

        Args:
            data: labelled samples.
            after_batch: called with batches done and their number; False ends the evaluation.

        Returns:
            The result; None if ``after_batch`` ended it.

        Raises:
            DataError: there are no samples, or one cannot be read.
            NonFiniteLossError: a logit is NaN or infinite.
            BudgetError: the arena is exhausted.
        """
        if not len(data):
            raise DataError(
                where=str(data.path), expected="samples", got="none", todo="give some data"
            )
        loss_sum = 0.0
        hits = np.zeros(len(data), np.bool_)
        prefetch = self._provider != "cpu"
        reader = batches(
            data,
            self.batch,
            self.batch,
            shuffle=False,
            augment=False,
            prefetch=prefetch,
            buffers=self._inputs.buffers(2 if prefetch else 1),
        )
        count = -(-len(data) // self.batch)
        with closing(cast("Generator[MicroBatch, None, None]", reader)) as parts:
            for number, part in enumerate(parts, start=1):
                self._inputs.write(part.inputs)
                self._graph.run()
                logits = self._logits.read()[: part.samples]
                labels = part.labels[: part.samples]
                loss_sum += _cross_entropy_sum(logits, labels, str(data.path))
                hits[part.indices] = logits.argmax(axis=1) == labels
                if after_batch is not None and not after_batch(number, count):
                    return None
        per_class = _count(self._labels, data.labels, hits)
        return Evaluation(loss_sum / len(data), float(hits.mean()), len(data), per_class)


def _cross_entropy_sum(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], where: str
) -> float:
    """Sum over rows of ``log sum exp(z) - z[label]``, in float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]
    total = float(losses.sum())
    if not np.isfinite(total):
        raise NonFiniteLossError(
            where=f"evaluation on {where}",
            expected="finite logits",
            got="NaN or infinity",
            todo="evaluate an earlier checkpoint, or train with a lower learning rate",
        )
    return total


def _labels(manifest: Manifest) -> tuple[str, ...]:
    task = manifest.task
    return task.labels or tuple(str(number) for number in range(task.classes))


def _count(
    names: tuple[str, ...], labels: npt.NDArray[np.int64], hits: npt.NDArray[np.bool_]
) -> tuple[ClassCount, ...]:
    samples = np.bincount(labels, minlength=len(names))
    correct = np.bincount(labels[hits], minlength=len(names))
    return tuple(ClassCount(name, int(samples[i]), int(correct[i])) for i, name in enumerate(names))
