"""Small data sets and the manifests they are read with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

import numpy as np
from PIL import Image

from s2a_edge.run.data.dataset import DataCheck
from s2a_edge.run.data.dtypes import I64, U8, Row
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import InputSpec, Manifest, Preprocessing, Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def preprocessing(
    size: tuple[int, int] = (16, 16),
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    channels: Literal["RGB", "BGR"] = "RGB",
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    crop_pct: float = 1.0,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    scale: float = 1.0,
) -> Preprocessing:
    """Identity on the pixels' values unless told otherwise."""
    return Preprocessing("image", size, layout, channels, scale, mean, std, interpolation, crop_pct)


def manifest(
    labels: Sequence[str] = ("cat", "dog"),
    spec: Preprocessing | None = None,
    inputs: Sequence[InputSpec] | None = None,
    classes: int | None = None,
) -> Manifest:
    """The fields of a manifest that the data package reads; an image bundle by default."""
    if inputs is None:
        spec = spec or preprocessing()
        height, width = spec.size
        shape = (3, height, width) if spec.layout == "NCHW" else (height, width, 3)
        inputs = [InputSpec("image", "float32", shape, "image")]
    task = Task("cross_entropy", classes or len(labels), tuple(labels))
    fields = SimpleNamespace(inputs=tuple(inputs), preprocessing=spec, task=task)
    return cast(Manifest, fields)


def pattern(height: int, width: int, seed: int = 0) -> U8:
    """uint8 [H, W, 3]: smooth colours with edges; no two places look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(smooth)


def write_folders(root: Path, counts: Mapping[str, int], side: int = 20) -> Path:
    """``counts`` PNG files per class."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(pattern(side, side + 4, seed=100 * number + i)).save(
                root / name / f"{i:03}.png"
            )
    return root


class CountingData:
    """Sample i is the number i (and a draw of its stream); remembers what was read."""

    inputs = (InputSpec("x", "float32", (2,), "tensor"),)
    path = Path("counting")
    resident_bytes = 0
    fingerprint = "counting"

    def __init__(self, samples: int, fails_at: int | None = None) -> None:
        self.targets: I64 = np.arange(samples, dtype=np.int64) % 7
        self.read: list[int] = []
        self._fails_at = fails_at

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        return str(index)

    def load(
        self, index: int, out: Mapping[str, Row], rng: np.random.Generator | None = None
    ) -> None:
        if index == self._fails_at:
            raise DataError(where=str(index), expected="a", got="b", todo="c")
        self.read.append(index)
        out["x"][:] = index, 0.0 if rng is None else rng.random()

    def check(self) -> DataCheck:
        return DataCheck(len(self), 0, "")
