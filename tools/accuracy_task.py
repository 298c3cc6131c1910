"""What the processes of ``accuracy`` share: the task, its data and start values, the outcome.

Ours and PyTorch's take the same bytes from here, so that only the training step can differ.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s2a_edge.run.data import Augmentation, ImageFolder
from s2a_edge.run.device_tensor import Array
from s2a_edge.spec.bundle import Bundle

HEAD_WEIGHT = "head.weight"
_HEAD_STD = 0.02  # as packing draws it
_REPORT_INTERVAL_S = 15.0


@dataclass(frozen=True)
class Task:
    """One training and its evaluation.

    Attributes:
        configuration: ``ours-32``, ``ours-4``, … or ``torch``.
        bundle: folder; PyTorch takes start values and preprocessing from it.
        train: class folders to train on.
        test: class folders to evaluate on.
        weights: ``.safetensors`` of the backbone's weights, for PyTorch.
        features: ``.npz`` with ``images`` [n, 3, H, W] and ``features`` [n, D] that ONNX Runtime
            computed from the source file.
        seed: of the head's start values, order and augmentation.
        epochs: passes over the training images.
        lr: peak learning rate.
        warmup_epochs: length of the linear warm-up.
        label_smoothing: 0..1.
        weight_decay: of the head's weight, decoupled.
        min_crop: smallest share of an image's area that a random crop takes.
        threads: of one operator.
    """

    configuration: str
    bundle: str
    train: str
    test: str
    weights: str
    features: str
    seed: int
    epochs: int
    lr: float
    warmup_epochs: float
    label_smoothing: float
    weight_decay: float
    min_crop: float
    threads: int


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        configuration: of the task.
        seed: of the task.
        top1: share of test images classified correctly, 0..1.
        test_loss: mean cross-entropy on them.
        test_images: how many.
        losses: mean training loss of each optimizer step, before its update.
        trained_images: samples that were trained on, all epochs together.
        train_s: seconds of the epochs, reading of images included.
        test_s: seconds of the evaluation.
        peak_bytes: VmHWM of the process, from start to end.
        load_average: of the machine over the last 5 minutes, at the end.
        tuned_numbers: numbers that were trained.
        features_error: largest difference to ONNX Runtime's features; None where not compared.
    """

    configuration: str
    seed: int
    top1: float
    test_loss: float
    test_images: int
    losses: tuple[float, ...]
    trained_images: int
    train_s: float
    test_s: float
    peak_bytes: int
    load_average: float
    tuned_numbers: int
    features_error: float | None = None

    @property
    def images_s(self) -> float:
        """Training images per second."""
        return self.trained_images / self.train_s

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "losses": tuple(fields["losses"])})


def read_task() -> Task:
    """The task that the process was started with: JSON, its only argument."""
    return Task(**json.loads(sys.argv[1]))


def start_values(bundle: Bundle, seed: int) -> dict[str, Array]:
    """Initial trainables; the head's weight is drawn anew, N(0, 0.02²), with ``seed``."""
    values = bundle.initial_parameters()
    drawn = np.random.default_rng(seed).normal(0.0, _HEAD_STD, values[HEAD_WEIGHT].shape)
    return {**values, HEAD_WEIGHT: np.asarray(drawn, np.float32)}


def training_data(task: Task, bundle: Bundle) -> ImageFolder:
    """The training images, with the task's crops."""
    return ImageFolder(Path(task.train), bundle.manifest, Augmentation(scale=(task.min_crop, 1.0)))


def evaluation_data(task: Task, bundle: Bundle) -> ImageFolder:
    """The test images."""
    return ImageFolder(Path(task.test), bundle.manifest)


class Reporter:
    """Tells on stderr, now and then, how far a process is."""

    def __init__(self, task: Task) -> None:
        self._title = f"  {task.configuration}, seed {task.seed}"
        self._last_s = self._start_s = time.monotonic()

    def tell(self, what: str, done: int, count: int) -> None:
        """``done`` of ``count`` steps of ``what``; silent if it spoke a moment ago."""
        now_s = time.monotonic()
        if now_s - self._last_s >= _REPORT_INTERVAL_S:
            self._last_s = now_s
            print(f"{self._title}: {what} {done}/{count}, {now_s - self._start_s:.0f} s",
                  file=sys.stderr, flush=True)
