"""Images in class sub-folders: ``DIR/<label>/**/*.jpg`` and other formats."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from s2a_edge.run.data.augmentation import Augmentation, draw_flip, random_region
from s2a_edge.run.data.class_names import match_folders
from s2a_edge.run.data.dataset import DataCheck, DataTerms
from s2a_edge.run.data.decoding import (
    EXTENSIONS,
    ImageHeader,
    Region,
    printable,
    read_header,
    read_region,
)
from s2a_edge.run.data.dtypes import I64, Row
from s2a_edge.run.data.preprocessing import (
    center_region,
    check_image_input,
    jpeg_reduction,
    normalization_table,
    resample_filter,
    write_normalized,
)
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import InputSpec

_MAX_LISTED = 5  # bad files named in one error


class ImageFolder:
    """A :class:`~s2a_edge.run.data.dataset.DataSet` over image files.

    Samples are ordered by class index, then by name, whatever order the file system lists them in.
    Hidden files, hidden folders and files with other extensions are left out. Only names are held
    (about 100 bytes each).

    Args:
        path: folder that holds one sub-folder per class.
        manifest: of the bundle: its labels, its image input and its preprocessing.
        augmentation: what ``load`` does where it is given a random stream.

    Raises:
        DataError: no class folder, one without images, one the bundle has no label for, or a
            bundle that does not take images.
        BundleError: its image input and its preprocessing disagree.
    """

    def __init__(
        self, path: Path, manifest: DataTerms, augmentation: Augmentation | None = None
    ) -> None:
        self.path = path
        self.inputs: tuple[InputSpec, ...] = manifest.inputs
        self._spec = check_image_input(manifest.inputs, manifest.preprocessing)
        self._augmentation = augmentation or Augmentation()
        self._table = normalization_table(self._spec)
        self._names, self.labels = _scan(path, manifest)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def resident_bytes(self) -> int:
        """Bytes of names and labels."""
        return self.labels.nbytes + sum(sys.getsizeof(name) + 8 for name in self._names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of relative names and labels; not of the pixels."""
        digest = hashlib.sha256()
        for name, label in zip(self._names, self.labels.tolist(), strict=True):
            digest.update(os.fsencode(name) + f"\0{label}\n".encode())
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """The file's path inside the folder."""
        return printable(self._names[index])

    def load(
        self, index: int, out: Mapping[str, Row], rng: np.random.Generator | None = None
    ) -> None:
        """Decode one image into ``out``; see :meth:`DataSet.load`."""
        spec = self._spec

        def choose(width: int, height: int) -> Region:
            if rng is None:
                return center_region(width, height, spec)
            return random_region(width, height, rng, self._augmentation)

        pixels = read_region(
            self.path / self._names[index],
            spec.size,
            resample_filter(spec),
            choose,
            lambda width, height: jpeg_reduction(width, height, spec),
        )
        if rng is not None and draw_flip(rng, self._augmentation):
            pixels = pixels[:, ::-1]
        write_normalized(pixels, self._table, spec, out[self.inputs[0].name])

    def check(self) -> DataCheck:
        """Open every file and read its header; all bad files are counted, the first few named."""
        bad: list[DataError] = []
        largest, decode_bytes = "", 0
        for name in self._names:
            try:
                header = read_header(self.path / name)
            except DataError as error:
                bad.append(error)
                continue
            needed = self._decode_bytes(header)
            if needed > decode_bytes:
                largest, decode_bytes = printable(name), needed
        if bad:
            raise _all_bad(self.path, bad, len(self._names))
        return DataCheck(len(self._names), decode_bytes, largest)

    def _decode_bytes(self, header: ImageHeader) -> int:
        return header.decode_bytes(jpeg_reduction(header.width, header.height, self._spec))


def _scan(path: Path, manifest: DataTerms) -> tuple[list[str], I64]:
    try:
        folders = sorted(x.name for x in path.iterdir() if x.is_dir() and x.name[0] != ".")
        found = match_folders(folders, manifest.task, where=printable(path))
        names: list[str] = []
        labels: list[int] = []
        for label, folder in found:
            images = _images(path, folder)
            if not images:
                raise _no_images(path / folder, "a class folder with images")
            names += images
            labels += [label] * len(images)
    except OSError as error:
        raise DataError(
            where=printable(path),
            expected="a folder that can be read",
            got=error.strerror or type(error).__name__,
            todo="check the path and its permissions",
        ) from error
    return names, np.array(labels, dtype=np.int64)


def _images(root: Path, folder: str) -> list[str]:
    """Paths of all images below ``folder``, relative to ``root``, sorted."""
    names: list[str] = []
    for parent, folders, files in os.walk(root / folder, onerror=_refuse):
        folders[:] = [x for x in folders if not x.startswith(".")]
        inside = Path(parent).relative_to(root)
        names += [
            (inside / file).as_posix()
            for file in files
            if not file.startswith(".") and Path(file).suffix.lower() in EXTENSIONS
        ]
    return sorted(names)


def _refuse(error: OSError) -> None:
    raise error


def _no_images(folder: Path, expected: str) -> DataError:
    return DataError(
        where=printable(folder),
        expected=expected,
        got="none",
        todo=f"add images ({', '.join(sorted(x[1:] for x in EXTENSIONS))}) or remove the folder",
    )


def _all_bad(path: Path, bad: list[DataError], samples: int) -> DataError:
    if len(bad) == 1:
        return bad[0]
    listed = "; ".join(f"{x.where} ({x.got})" for x in bad[:_MAX_LISTED])
    more = f"; and {len(bad) - _MAX_LISTED} more" if len(bad) > _MAX_LISTED else ""
    return DataError(
        where=printable(path),
        expected=f"{samples} complete images",
        got=f"{len(bad)} that cannot be used: {listed}{more}",
        todo="replace or remove these files",
    )
