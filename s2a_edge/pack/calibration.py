"""What gradients are measured on while packing: samples of real data, or a stand-in for them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.optimizer import OPTIMIZER
from s2a_edge.pack.rehearse import subprocess_environment
from s2a_edge.spec.calibration import CALIBRATION_TARGETS, CalibrationRequest
from s2a_edge.spec.errors import DataError, InternalError
from s2a_edge.spec.manifest import Calibration
from s2a_edge.spec.task_ports import TARGET, WEIGHT, Loss

Arrays = dict[str, NDArray[Any]]
NOISE = "smooth noise"


@dataclass(frozen=True)
class Samples:
    """Data that gradients are measured on.

    Attributes:
        inputs: by name of the data input, [N, *shape]; empty: noise is made for every batch.
        targets: rows [N, C] as the loss takes them; None with noise, and for a graph that is its
            own loss.
        source: what it is, for people.
        seed: of the noise, and of random targets where there are none.
        loss: of the task: which targets are made up with noise.
    """

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any] | None
    source: str
    seed: int
    loss: Loss = "cross_entropy"

    def __len__(self) -> int:
        """How many samples of real data there are; 0 with noise."""
        return min((len(rows) for rows in self.inputs.values()), default=0)

    def batches(self, batch: int) -> int:
        """How many different batches there are: 1 where the samples do not fill one."""
        return max(1, len(self) // batch)

    def record(self, batch: int) -> Calibration:
        """For the manifest: what was measured on, with graphs for ``batch`` samples."""
        count = min(len(self), batch * self.batches(batch)) if self.inputs else batch
        return Calibration(self.source, count)

    def feeds(self, model: ir.Model, initial: Mapping[str, NDArray[Any]], number: int = 0,
              ) -> Arrays:
        """Values for every input of ``model``, for batch ``number``.

        A batch that is larger than the data repeats samples.

        Args:
            model: a training, evaluation or optimizer graph.
            initial: start values of the trainables.
            number: which batch, from 0.
        """
        # A generator for each batch, so that batch 3 is the same whether or not 0..2 were made.
        if model.graph.name == OPTIMIZER:  # parameters, gradients, states: any values will do
            return {value.name or "": np.full(shape_of(value), 0.5 * (not shape_of(value)),
                                              np.float32) for value in model.graph.inputs}
        rng = np.random.default_rng(self.seed if number == 0 else [self.seed, number])
        return {value.name or "": self._feed(value, initial, number, rng)
                for value in model.graph.inputs}

    def _feed(self, value: ir.Value, initial: Mapping[str, NDArray[Any]], number: int,
              rng: np.random.Generator) -> NDArray[Any]:
        name, shape, dtype = value.name or "", shape_of(value), dtype_of(value).numpy()
        if name.startswith("param."):
            return initial[name.removeprefix("param.")]
        if name in self.inputs:
            return self.inputs[name][self._rows(shape[0], number)]
        if name == TARGET and self.loss != "output":  # a graph with its own loss has its own inputs
            made = _random_targets(rng, self.loss, shape) if self.targets is None \
                else self.targets[self._rows(shape[0], number)]
            return np.asarray(made, dtype)
        if name == WEIGHT and self.loss != "output":
            return np.full(shape, 1.0 / math.prod(shape), dtype)
        if name.startswith("acc."):
            return np.zeros(shape, dtype)
        if not shape:
            return np.asarray(0.5, dtype)
        if np.issubdtype(dtype, np.integer):
            rows = _rows_of_table(value)
            return np.asarray(np.ones(shape) if rows is None else rng.integers(rows, size=shape),
                              dtype)
        return smooth_noise(rng, shape).astype(dtype)

    def _rows(self, batch: int, number: int) -> NDArray[np.int64]:
        return (np.arange(batch, dtype=np.int64) + number * batch) % len(self)


def _rows_of_table(value: ir.Value) -> int | None:
    """Rows of the smallest embedding that ``value`` indexes: tokens differ, as in a text.

    None for what picks no rows: masks are ones.
    """
    sizes = [shape_of(table)[use.node.attributes.get_int("axis", 0)] for use in value.uses()
             if use.node.op_type == "Gather" and use.idx == 1
             and (table := use.node.inputs[0]) is not None]
    return min(sizes, default=None)


def noise(seed: int, loss: Loss = "cross_entropy") -> Samples:
    """Seeded stand-ins: images with the spectrum of photographs, random targets."""
    return Samples({}, None, NOISE, seed, loss)


def _random_targets(rng: np.random.Generator, loss: Loss, shape: tuple[int, ...],
                    ) -> NDArray[Any]:
    """Of a task: classes, labels that are on or off, or unit-variance numbers."""
    if loss == "cross_entropy":
        return np.asarray(np.eye(shape[1])[rng.integers(shape[1], size=shape[0])])
    if loss == "bce":
        return rng.integers(2, size=shape)
    return rng.standard_normal(shape)


def read_samples(request: CalibrationRequest) -> Samples:
    """Samples of real data, read by the board's own code in a process of its own.

    ``request.out`` is written and removed.

    Raises:
        DataError: the data cannot be read, or does not suit the backbone.
        InternalError: the process broke.
    """
    done = subprocess.run([sys.executable, "-m", "s2a_edge.run.calibration_samples"],
                          input=request.to_json(), capture_output=True, text=True, check=False,
                          env=subprocess_environment())
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise InternalError(where="reading of calibration samples", expected="a JSON answer",
                            got=f"exit {done.returncode}: {done.stderr.strip()[-400:]}",
                            todo="report this") from error
    if not answer["ok"]:
        raise DataError(where=f"--calibration: {answer['where']}", expected=answer["expected"],
                        got=answer["got"], todo=answer["todo"])
    out = Path(request.out)
    with np.load(out) as archive:
        inputs = {spec.name: archive[spec.name] for spec in request.inputs}
        targets = archive.get(CALIBRATION_TARGETS)
    out.unlink()
    return Samples(inputs, targets, Path(request.data).name or request.data, request.seed,
                   request.task.loss)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Unit-variance noise; rank 4 gets structure at all scales, as photographs have.

    White noise would drive a pretrained backbone far from what it sees in use, and the measured
    gradient errors with it.
    """
    if len(shape) != 4:
        return rng.standard_normal(shape)
    spatial = (1, 2) if shape[-1] <= 4 else (2, 3)
    total = np.zeros(shape)
    block = 1
    while block <= max(shape[a] for a in spatial):
        small = [-(-n // block) if a in spatial else n for a, n in enumerate(shape)]
        layer = rng.standard_normal(small)
        for axis in spatial:
            layer = np.repeat(layer, block, axis).take(range(shape[axis]), axis)
        total += layer * block**0.5
        block *= 2
    unit: NDArray[np.float64] = total / total.std()
    return unit


__all__ = ["NOISE", "Samples", "noise", "read_samples", "smooth_noise"]
