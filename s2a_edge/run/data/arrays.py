"""Samples as arrays in one ``.npz``: the bundle's inputs by name, and what each sample is.

An ``.npz`` is a zip of ``.npy`` files (NEP 1). ``numpy.savez`` stores them as they are: a sample is
then a run of bytes at a known offset, and is read from there when it is asked for. Read, not
mapped: mapped pages count as the process's memory, and a failing SD card would end the process
with SIGBUS where a read gives an error that training can save its work on.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from s2a_edge.run.data.array_targets import read_targets, target_array
from s2a_edge.run.data.dataset import DataCheck, DataTerms
from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.dtypes import Row
from s2a_edge.run.data.npz_members import Member, damaged, read_array, read_members
from s2a_edge.run.data.targets import no_targets
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import InputSpec
from s2a_edge.spec.units import MIB, format_bytes

COMPRESSED_LIMIT_BYTES = 64 * MIB  # unpacked size of all compressed members; beyond: refuse


class ArrayDataSet:
    """A :class:`~s2a_edge.run.data.dataset.DataSet` over an ``.npz``.

    Arrays are taken as they are: no preprocessing, no augmentation. Compressed members (from
    ``numpy.savez_compressed``) cannot be read sample by sample; up to 64 MiB of them are unpacked
    and held, and counted in ``resident_bytes``.

    Args:
        path: the file.
        manifest: of the bundle: its inputs and task.

    Raises:
        DataError: the file is damaged, an array is missing or of another dtype or shape, a target
            is out of range, or compressed arrays are too large.
    """

    def __init__(self, path: Path, manifest: DataTerms) -> None:
        self.path = path
        self.inputs: tuple[InputSpec, ...] = manifest.inputs
        try:
            with zipfile.ZipFile(path) as archive:
                name = target_array(manifest.task)
                names = [x.name for x in self.inputs]
                members = read_members(archive, path, names if name is None else [*names, name])
                self._members = {x: members[x] for x in names}
                self.targets = (
                    no_targets(_common_length(self._members, path))
                    if name is None
                    else read_targets(archive, members[name], manifest.task, path)
                )
                for spec in self.inputs:
                    _check_member(self._members[spec.name], spec, len(self.targets), path)
                self._unpacked = _unpack(archive, self._members, path)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise damaged(path, str(error)) from error

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def resident_bytes(self) -> int:
        """Bytes of targets and of unpacked compressed arrays."""
        return self.targets.nbytes + sum(x.nbytes for x in self._unpacked.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of targets, array names, shapes and checksums as the zip records them."""
        digest = hashlib.sha256(self.targets.tobytes())
        for name, member in self._members.items():
            digest.update(f"{name} {member.dtype} {member.shape} {member.info.CRC}\n".encode())
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """File and row."""
        return f"{printable(self.path.name)}[{index}]"

    def load(
        self, index: int, out: Mapping[str, Row], rng: np.random.Generator | None = None
    ) -> None:
        """Read one sample into ``out``; ``rng`` is not used. See :meth:`DataSet.load`."""
        try:
            for name, member in self._members.items():
                if member.offset is None:
                    out[name][...] = self._unpacked[name][index]
                else:
                    self._read_row(member, index, out[name])
        except OSError as error:
            raise damaged(self.path, f"row {index}: {error.strerror or error}") from error

    def check(self) -> DataCheck:
        """Nothing to decode; shapes, dtypes and targets were checked on opening."""
        return DataCheck(len(self), 0, "")

    def _read_row(self, member: Member, index: int, row: Row) -> None:
        assert member.offset is not None
        row_bytes = member.size_bytes // member.shape[0]
        with self.path.open("rb", buffering=0) as file:
            file.seek(member.offset + index * row_bytes)
            view = row.reshape(-1).view(np.uint8).data
            done = 0
            while done < row_bytes:
                count = file.readinto(view[done:])
                if not count:
                    raise damaged(self.path, f"it ends inside row {index}")
                done += count


def _common_length(members: Mapping[str, Member], path: Path) -> int:
    """Rows of the first input, where no array of targets says how many samples there are."""
    first = next(iter(members.values()))
    if not first.shape or not first.shape[0]:
        raise DataError(
            where=f"{printable(path)}: {first.info.filename}",
            expected="one row per sample",
            got=f"{first.dtype} {list(first.shape)}",
            todo="save what the model takes, with the samples along the first axis",
        )
    return first.shape[0]


def _check_member(member: Member, spec: InputSpec, samples: int, path: Path) -> None:
    wanted = (samples, *spec.shape)
    if member.shape != wanted or member.dtype != np.dtype(spec.dtype):
        raise DataError(
            where=f"{printable(path)}: {spec.name}",
            expected=f"{spec.dtype} {list(wanted)}",
            got=f"{member.dtype} {list(member.shape)}",
            todo="save what the model takes, one row per target",
        )


def _unpack(archive: zipfile.ZipFile, members: Mapping[str, Member], path: Path) -> dict[str, Row]:
    packed = {name: member for name, member in members.items() if member.offset is None}
    size_bytes = sum(member.size_bytes for member in packed.values())
    if size_bytes > COMPRESSED_LIMIT_BYTES:
        raise DataError(
            where=printable(path),
            expected=f"at most {format_bytes(COMPRESSED_LIMIT_BYTES)} of compressed arrays",
            got=f"{format_bytes(size_bytes)} in {', '.join(packed)}",
            todo="save with numpy.savez instead of savez_compressed, to be read sample by sample",
        )
    return {name: read_array(archive, member, path) for name, member in packed.items()}
