"""Image files with targets, decoded one at a time."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s2a_edge.run.data.augmentation import Augmentation, draw_flip, random_region
from s2a_edge.run.data.dataset import DataCheck, DataTerms
from s2a_edge.run.data.decoding import (
    ImageHeader,
    Region,
    printable,
    read_header,
    read_region,
)
from s2a_edge.run.data.dtypes import Row, Targets
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


class ImageFiles:
    """A :class:`~s2a_edge.run.data.dataset.DataSet` over image files.

    Only names and targets are held (about 100 bytes a name).

    Args:
        path: where it came from.
        root: the folder that names are relative to.
        manifest: of the bundle: its image input and its preprocessing.
        names: of the files, relative to ``root``.
        targets: one row each, in the form of the task.
        augmentation: what ``load`` does where it is given a random stream.

    Raises:
        DataError: the bundle does not take images.
        BundleError: its image input and its preprocessing disagree.
    """

    def __init__(
        self,
        path: Path,
        root: Path,
        manifest: DataTerms,
        names: Sequence[str],
        targets: Targets,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.path = path
        self.inputs: tuple[InputSpec, ...] = manifest.inputs
        self.targets = targets
        self._root, self._names = root, names
        self._spec = check_image_input(manifest.inputs, manifest.preprocessing)
        self._augmentation = augmentation or Augmentation()
        self._table = normalization_table(self._spec)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def resident_bytes(self) -> int:
        """Bytes of names and targets."""
        return self.targets.nbytes + sum(sys.getsizeof(name) + 8 for name in self._names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of relative names and targets; not of the pixels."""
        digest = hashlib.sha256()
        for name, target in zip(self._names, self.targets.tolist(), strict=True):
            digest.update(os.fsencode(name) + f"\0{target}\n".encode())
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
            self._root / self._names[index],
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
                header = read_header(self._root / name)
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
