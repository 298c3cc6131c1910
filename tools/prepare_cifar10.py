"""Lays out a zip of CIFAR-10 JPEGs as class folders, a seeded subset of each class.

The zip holds ``.../train/<class>/<image>.jpg`` and ``.../test/<class>/<image>.jpg``; images are
copied one at a time, as they are::

    OUT/train/<class>/0012.jpg
    OUT/test/<class>/0003.jpg

Run: python tools/prepare_cifar10.py cifar10-subset.zip --out out/cifar10 [--train-per-class 100]
     [--test-images 5000] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_SEED = 0


def members_by_class(archive: zipfile.ZipFile, split: str) -> dict[str, list[str]]:
    """Member names of ``split`` by class, both sorted.

    Raises:
        ValueError: the archive has no such images, or names that are no plain file names.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(archive.namelist()):
        parts = PurePosixPath(name).parts
        if len(parts) < 3 or parts[-3] != split or not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        if any(part.startswith(".") or "\\" in part for part in parts[-2:]):
            raise ValueError(f"{name!a}: not a plain file name")
        found.setdefault(parts[-2], []).append(name)
    if not found:
        raise ValueError(f"no .../{split}/<class>/<image>.jpg in {archive.filename}")
    return found


def select(names: list[str], count: int, *, seed: int, skip: int = 0) -> list[str]:
    """``count`` of ``names`` after the first ``skip`` of their order under ``seed``.

    Subsets of one seed with other ``skip`` do not overlap.

    Raises:
        ValueError: there are not as many.
    """
    shuffled = random.Random(seed).sample(names, len(names))
    chosen = shuffled[skip : skip + count]
    if len(chosen) < count:
        raise ValueError(f"{skip + count} images of a class wanted, {len(names)} there")
    return chosen


def extract(path: Path, split: str, out: Path, *, per_class: int, seed: int, skip: int = 0,
            ) -> dict[str, int]:
    """Writes ``out/<class>/<image>``; ``out`` appears when it is complete, or stays as it was.

    Returns:
        How many images each class has.

    Raises:
        ValueError: the archive does not hold what is wanted.
        OSError: it cannot be read, or the folder not written.
    """
    half = out.with_name(f".{out.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    counts = {}
    with zipfile.ZipFile(path) as archive:
        for label, names in members_by_class(archive, split).items():
            chosen = select(names, per_class, seed=seed, skip=skip)
            (half / label).mkdir(parents=True)
            for name in chosen:
                target = half / label / PurePosixPath(name).name
                with archive.open(name) as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
            counts[label] = len(chosen)
    shutil.rmtree(out, ignore_errors=True)
    half.rename(out)
    return counts


def class_names(path: Path, split: str = "train") -> tuple[str, ...]:
    """Names of the classes in the archive, sorted."""
    with zipfile.ZipFile(path) as archive:
        return tuple(members_by_class(archive, split))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("archive", type=Path, help="the zip")
    parser.add_argument("--out", type=Path, required=True,
                        help="folder; its train/ and test/ are replaced")
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--test-images", type=int, default=5000, help="of all classes together")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of training images")
    given = parser.parse_args()
    try:
        classes = len(class_names(given.archive))
        wanted = {"train": (given.train_per_class, given.seed),
                  "test": (given.test_images // classes, TEST_SEED)}
        for split, (per_class, seed) in wanted.items():
            counts = extract(given.archive, split, given.out / split, per_class=per_class,
                             seed=seed)
            print(f"{given.out / split}: {sum(counts.values())} images of {len(counts)} classes")
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
