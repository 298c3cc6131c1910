"""Lays out the ELPV photographs of solar cells as class folders, for `s2a-edge train`.

The package elpv-dataset (CC-BY-NC-SA-4.0) holds 2,624 photographs of 300 x 300 pixels with a
defect probability of 0, 1/3, 2/3 or 1. The two certain ends become two classes::

    OUT/train/functional/cell0004.png   probability 0
    OUT/train/defective/cell0001.png    probability 1
    OUT/val/...                         a fifth of each class, drawn with a fixed seed

Run: python tools/prepare_elpv.py --out out/elpv [--per-class 300] [--seed 0]
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import shutil
import sys
from pathlib import Path

CLASS_OF_PROBABILITY = {"0.0": "functional", "1.0": "defective"}
VALIDATION_SHARE = 0.2


def dataset_folder() -> Path:
    """Where the installed package keeps ``labels.csv`` and ``images/``."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        sys.exit("error: elpv_dataset is not installed; pip install --no-deps elpv-dataset")
    return Path(spec.origin).parent / "data"


def images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Paths of the certain photographs by class, in the order of ``labels.csv``."""
    found: dict[str, list[Path]] = {name: [] for name in CLASS_OF_PROBABILITY.values()}
    for line in (folder / "labels.csv").read_text().splitlines():
        image, probability, _cell_type = line.split()
        if probability in CLASS_OF_PROBABILITY:
            found[CLASS_OF_PROBABILITY[probability]].append(folder / image)
    return found


def split(images: list[Path], *, seed: int, limit: int | None) -> tuple[list[Path], list[Path]]:
    """``images`` as (train, validation), shuffled with ``seed``, at most ``limit`` in all."""
    shuffled = random.Random(seed).sample(images, len(images))[:limit]
    held_out = round(len(shuffled) * VALIDATION_SHARE)
    return shuffled[held_out:], shuffled[:held_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; replaced")
    parser.add_argument("--per-class", type=int, help="take at most so many of each class")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    for part in ("train", "val"):
        shutil.rmtree(given.out / part, ignore_errors=True)
    for name, images in images_by_class(dataset_folder()).items():
        parts = split(images, seed=given.seed, limit=given.per_class)
        for part, chosen in zip(("train", "val"), parts, strict=True):
            target = given.out / part / name
            target.mkdir(parents=True)
            for image in chosen:
                shutil.copyfile(image, target / image.name)
            print(f"{target}: {len(chosen)} images")


if __name__ == "__main__":
    main()
