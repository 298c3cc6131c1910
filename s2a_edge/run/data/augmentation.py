"""Random crops and flips that depend on (seed, epoch, sample) and on nothing else.

Philox is counter-based (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011):
seed, epoch and sample index *are* the state, so a sample looks the same in whatever order, batch
size or run it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from s2a_edge.run.data.decoding import Region
from s2a_edge.run.data.dtypes import I64

_SAMPLE_STREAM = 0
_ORDER_STREAM = 1
_WORD = 2**64 - 1
_CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augmentation:
    """Random-resized crop and horizontal flip.

    The defaults are the field's: Szegedy et al., Going Deeper with Convolutions, 2014, section 6.

    Attributes:
        scale: range of the crop's share of the image's area, uniform.
        ratio: range of the crop's width / height, log-uniform.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random stream of one sample in one epoch; no two of them overlap."""
    key = np.array([seed & _WORD, _SAMPLE_STREAM], dtype=np.uint64)
    # The lowest word counts up while numbers are drawn; the upper ones tell samples apart.
    counter = np.array([0, 0, index, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def epoch_order(samples: int, seed: int, epoch: int) -> I64:
    """A permutation of ``range(samples)``, int64 [samples].

    Made by sorting raw Philox words, whose values NumPy never changes between releases (NEP 19).
    """
    key = np.array([seed & _WORD, _ORDER_STREAM], dtype=np.uint64)
    counter = np.array([0, 0, 0, epoch], dtype=np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(samples)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def random_region(
    width: int, height: int, rng: np.random.Generator, augmentation: Augmentation
) -> Region:
    """A random-resized crop of a ``width`` x ``height`` image; the central one if none fits."""
    log_low, log_high = (math.log(bound) for bound in augmentation.ratio)
    low, high = augmentation.scale
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * _uniform(rng, low, high)
        ratio = math.exp(_uniform(rng, log_low, log_high))
        crop_width = round(math.sqrt(area * ratio))
        crop_height = round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.random() * (width - crop_width + 1))
            top = int(rng.random() * (height - crop_height + 1))
            return Region(left, top, crop_width, crop_height)
    crop_width = min(width, max(1, round(height * augmentation.ratio[1])))
    crop_height = min(height, max(1, round(width / augmentation.ratio[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return Region(left, top, crop_width, crop_height)


def draw_flip(rng: np.random.Generator, augmentation: Augmentation) -> bool:
    """Whether this sample is flipped."""
    return rng.random() < augmentation.flip


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
