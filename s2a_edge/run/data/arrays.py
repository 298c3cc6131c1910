"""Samples as arrays in one ``.npz``: the bundle's inputs by name, and ``labels``.

An ``.npz`` is a zip of ``.npy`` files (NEP 1). ``numpy.savez`` stores them as they are: a sample is
then a run of bytes at a known offset, and is read from there when it is asked for. Read, not
mapped: mapped pages count as the process's memory, and a failing SD card would end the process
with SIGBUS where a read gives an error that training can save its work on.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s2a_edge.run.data.dataset import DataCheck, DataTerms
from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.dtypes import I64, Row
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import InputSpec
from s2a_edge.spec.units import MIB, format_bytes

LABELS = "labels"
COMPRESSED_LIMIT_BYTES = 64 * MIB  # unpacked size of all compressed members; beyond: refuse

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # zip APPNOTE 4.3.7: signature, name and extra lengths
_MAX_LABELS_BYTES = 512 * MIB


@dataclass(frozen=True)
class _Member:
    """One ``.npy`` inside the zip; ``offset`` is that of its first sample, None if compressed."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int | None

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ArrayDataSet:
    """A :class:`~s2a_edge.run.data.dataset.DataSet` over an ``.npz``.

    Arrays are taken as they are: no preprocessing, no augmentation. Compressed members (from
    ``numpy.savez_compressed``) cannot be read sample by sample; up to 64 MiB of them are unpacked
    and held, and counted in ``resident_bytes``.

    Args:
        path: the file.
        manifest: of the bundle: its inputs and classes.

    Raises:
        DataError: the file is damaged, an array is missing or of another dtype or shape, a label is
            out of range, or compressed arrays are too large.
    """

    def __init__(self, path: Path, manifest: DataTerms) -> None:
        self.path = path
        self.inputs: tuple[InputSpec, ...] = manifest.inputs
        try:
            with zipfile.ZipFile(path) as archive:
                members = _read_members(archive, path, [*(x.name for x in self.inputs), LABELS])
                self.labels = _read_labels(archive, members[LABELS], path, manifest.task.classes)
                self._members = {x.name: members[x.name] for x in self.inputs}
                for spec in self.inputs:
                    _check_member(self._members[spec.name], spec, len(self.labels), path)
                self._unpacked = _unpack(archive, self._members, path)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise _damaged(path, str(error)) from error

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resident_bytes(self) -> int:
        """Bytes of labels and of unpacked compressed arrays."""
        return self.labels.nbytes + sum(x.nbytes for x in self._unpacked.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of labels, array names, shapes and checksums as the zip records them."""
        digest = hashlib.sha256(self.labels.tobytes())
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
            raise _damaged(self.path, f"row {index}: {error.strerror or error}") from error

    def check(self) -> DataCheck:
        """Nothing to decode; shapes, dtypes and labels were checked on opening."""
        return DataCheck(len(self), 0, "")

    def _read_row(self, member: _Member, index: int, row: Row) -> None:
        assert member.offset is not None
        row_bytes = member.size_bytes // member.shape[0]
        with self.path.open("rb", buffering=0) as file:
            file.seek(member.offset + index * row_bytes)
            view = row.reshape(-1).view(np.uint8).data
            done = 0
            while done < row_bytes:
                count = file.readinto(view[done:])
                if not count:
                    raise _damaged(self.path, f"it ends inside row {index}")
                done += count


def _read_members(archive: zipfile.ZipFile, path: Path, names: list[str]) -> dict[str, _Member]:
    found = {x.filename.removesuffix(".npy"): x for x in archive.infolist()}
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            where=printable(path),
            expected=f"the arrays {', '.join(names)}",
            got=f"no {', '.join(missing)}; it holds {', '.join(sorted(found)[:16]) or 'nothing'}",
            todo="save it with numpy.savez(path, **{input name: array}, labels=...)",
        )
    return {name: _read_member(archive, found[name], path) for name in names}


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Member:
    where = f"{printable(path)}: {info.filename}"
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise _damaged(path, f"{info.filename}: {error}") from error
        header_bytes = file.tell()
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise DataError(
            where=where,
            expected="plain numbers in C order",
            got="Python objects" if dtype.hasobject else "Fortran order",
            todo="save numpy.ascontiguousarray(array) of a number type",
        )
    member = _Member(info, shape, dtype, None)
    if header_bytes + member.size_bytes != info.file_size:
        raise _damaged(path, f"{info.filename} holds {info.file_size} bytes, not what it declares")
    if info.compress_type != zipfile.ZIP_STORED:
        return member
    offset = _data_offset(path, info) + header_bytes
    if offset + member.size_bytes > path.stat().st_size:
        raise _damaged(path, f"it ends inside {info.filename}")
    return _Member(info, shape, dtype, offset)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin; the local header's lengths differ from the directory's."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        raw = file.read(_LOCAL_HEADER.size)
    if len(raw) < _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
        raise _damaged(path, f"no header of {info.filename}")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
    return int(info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)


def _read_labels(archive: zipfile.ZipFile, member: _Member, path: Path, classes: int) -> I64:
    where = f"{printable(path)}: {LABELS}"
    todo = f"save class indices, 0 to {classes - 1}, as an integer array [samples]"
    if len(member.shape) != 1 or member.dtype.kind not in "iu":
        got = f"{member.dtype} {list(member.shape)}"
        raise DataError(where=where, expected="integers [samples]", got=got, todo=todo)
    if member.shape[0] == 0 or member.size_bytes > _MAX_LABELS_BYTES:
        got = f"{member.shape[0]} samples"
        raise DataError(where=where, expected="samples that fit in memory", got=got, todo=todo)
    labels = _read_array(archive, member, path)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        first = int(wrong[0])
        got = f"{labels[first]} in row {first}, {wrong.size} such rows"
        raise DataError(where=where, expected=f"labels of {classes} classes", got=got, todo=todo)
    return labels.astype(np.int64)


def _check_member(member: _Member, spec: InputSpec, samples: int, path: Path) -> None:
    wanted = (samples, *spec.shape)
    if member.shape != wanted or member.dtype != np.dtype(spec.dtype):
        raise DataError(
            where=f"{printable(path)}: {spec.name}",
            expected=f"{spec.dtype} {list(wanted)}",
            got=f"{member.dtype} {list(member.shape)}",
            todo="save what the model takes, one row per label",
        )


def _unpack(archive: zipfile.ZipFile, members: Mapping[str, _Member], path: Path) -> dict[str, Row]:
    packed = {name: member for name, member in members.items() if member.offset is None}
    size_bytes = sum(member.size_bytes for member in packed.values())
    if size_bytes > COMPRESSED_LIMIT_BYTES:
        raise DataError(
            where=printable(path),
            expected=f"at most {format_bytes(COMPRESSED_LIMIT_BYTES)} of compressed arrays",
            got=f"{format_bytes(size_bytes)} in {', '.join(packed)}",
            todo="save with numpy.savez instead of savez_compressed, to be read sample by sample",
        )
    return {name: _read_array(archive, member, path) for name, member in packed.items()}


def _read_array(archive: zipfile.ZipFile, member: _Member, path: Path) -> Row:
    with archive.open(member.info) as file:
        try:
            array: Row = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise _damaged(path, f"{member.info.filename}: {error}") from error
    return array


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        where=printable(path),
        expected="a complete .npz file",
        got=reason or "something else",
        todo="copy or save the file again",
    )
