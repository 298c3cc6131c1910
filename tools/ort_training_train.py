"""Trains the artifacts of ``s2a-edge pack --format ort-training`` by Module and Optimizer.

    s2a-edge pack backbone.onnx --format ort-training --out artifacts --labels labels.txt
    PYTHON=$(python -m tools.ort_training_environment)
    $PYTHON -m tools.ort_training_train artifacts --data photos/train --eval photos/test \
        --epochs 5 --save tuned --export tuned.onnx

Runs in the environment of onnxruntime-training alone: no torch, no compiler. Data is what
``s2a-edge train`` takes: class folders, a CSV, an ``.npz``. ``--save`` writes a checkpoint of the
API, ``--export`` a plain inference model (its frozen weights stay in the folder's weights.bin, so
it is written there).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from s2a_edge.run.data import batches, open_data
from s2a_edge.run.loss_inputs import LossInputs
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.errors import S2AError, UsageError
from s2a_edge.spec.manifest import AnyPreprocessing, InputSpec, Task
from s2a_edge.spec.strict_json import read
from s2a_edge.spec.task_ports import REGRESSION_LOSSES
from tools.ort_training_environment import import_without_torch

import_without_torch()
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402


@dataclass(frozen=True)
class Terms:
    """What data must suit; read from ``artifacts.json``."""

    inputs: tuple[InputSpec, ...]
    preprocessing: AnyPreprocessing | None
    task: Task


def session_options(about: dict[str, Any], threads: int) -> ort.SessionOptions:
    """What ``artifacts.json`` asks for, in words of the C interface only."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    for key, value in about["session"]["config"].items():
        options.add_session_config_entry(key, value)
    return options


class Trainer:
    """One set of artifacts and the state of its training.

    Args:
        folder: the artifacts.
        checkpoint: another start than the folder's own.
        threads: of the sessions.
    """

    def __init__(self, folder: Path, checkpoint: Path | None = None, threads: int = 0) -> None:
        self.about = json.loads((folder / "artifacts.json").read_text(encoding="utf-8"))
        terms = {key: self.about[key] for key in ("inputs", "preprocessing", "task")}
        self.terms = read(Terms, terms, file="artifacts.json")
        self.state = CheckpointState.load_checkpoint(checkpoint or folder / "checkpoint")
        self.module = Module(folder / "training_model.onnx", self.state,
                             folder / "eval_model.onnx",
                             session_options=session_options(self.about, threads))
        self.optimizer = Optimizer(folder / "optimizer_model.onnx", self.module)
        self.micro, self.batch = self.about["micro_batch"], self.about["effective_batch"]

    def feeds(self, path: Path, scaling: TargetScaling | None, **order: Any,
              ) -> Iterator[tuple[list[np.ndarray], np.ndarray, bool]]:
        """Inputs of the graphs in their order, targets without padding, whether a step is full."""
        data = open_data(path, self.terms, None)
        losses = LossInputs(self.terms.task, self.batch, scaling=scaling)
        for made in batches(data, self.batch, self.micro, **order):
            weight = losses.sample_weight(data.targets[made.step_indices])
            rows = losses.rows(made.targets, weight)
            given = [made.inputs[spec.name] for spec in self.terms.inputs]
            yield [*given, *(_padded(a, self.micro) for a in rows.values())], made.targets, \
                made.last

    def epoch(self, path: Path, number: int, rate: float, scaling: TargetScaling | None) -> float:
        """Trains one epoch; the mean loss of a step."""
        self.module.train()
        self.optimizer.set_learning_rate(rate)
        losses, loss = [], 0.0
        for inputs, _, last in self.feeds(path, scaling, epoch=number, augment=False):
            made = self.module(*inputs)
            loss += float(made[0] if isinstance(made, tuple) else made)
            if last:
                self.optimizer.step()
                self.module.lazy_reset_grad()
                losses.append(loss)
                loss = 0.0
        return float(np.mean(losses))

    def save(self, path: Path) -> None:
        """A checkpoint of parameters and optimizer state."""
        CheckpointState.save_checkpoint(self.state, path, True)

    def accuracy(self, path: Path, scaling: TargetScaling | None) -> float:
        """Share of samples whose class is predicted."""
        self.module.eval()
        right = total = 0
        for inputs, targets, _ in self.feeds(path, scaling, shuffle=False, augment=False):
            _, logits = self.module(*inputs)
            right += int((logits[:len(targets)].argmax(1) == targets).sum())
            total += len(targets)
        return right / total


def _padded(rows: np.ndarray, micro: int) -> np.ndarray:
    """Padding weighs nothing."""
    if not rows.ndim or len(rows) == micro:
        return rows
    return np.concatenate([rows, np.zeros((micro - len(rows), *rows.shape[1:]), rows.dtype)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--checkpoint", type=Path, help="go on from this one")
    parser.add_argument("--save", type=Path, help="write a checkpoint of the tuned model")
    parser.add_argument("--export", metavar="NAME.onnx",
                        help="write an inference model into the artifacts' folder")
    options = parser.parse_args()
    try:
        return _train(options)
    except S2AError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _train(options: argparse.Namespace) -> int:
    trainer = Trainer(options.artifacts, options.checkpoint, options.threads)
    task = trainer.terms.task
    data = open_data(options.data, trainer.terms, None)
    scaling = TargetScaling.of(data.targets) if task.loss in REGRESSION_LOSSES else None
    measures = options.eval is not None and task.loss == "cross_entropy"
    for number in range(options.epochs):
        began = time.perf_counter()
        loss = trainer.epoch(options.data, number, options.lr, scaling)
        top1 = f", top-1 {trainer.accuracy(options.eval, scaling):.4f}" if measures else ""
        print(f"epoch {number + 1}: loss {loss:.5f}{top1}, "
              f"{time.perf_counter() - began:.1f} s", flush=True)
    if options.save:
        trainer.save(options.save)
    if options.export:
        if Path(options.export).name != options.export:
            raise UsageError(where="--export", expected="a file name", got=options.export,
                             todo="it is written beside weights.bin, which it refers to")
        trainer.module.export_model_for_inferencing(options.artifacts / options.export,
                                                    trainer.about["eval_outputs"][-1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
