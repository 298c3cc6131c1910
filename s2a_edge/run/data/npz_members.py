"""The members of an ``.npz``: where each array begins, and reading it whole.

An ``.npz`` is a zip of ``.npy`` files (NEP 1). ``numpy.savez`` stores them as they are: a sample is
then a run of bytes at a known offset.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s2a_edge.run.data.decoding import printable
from s2a_edge.run.data.dtypes import Row
from s2a_edge.spec.errors import DataError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # zip APPNOTE 4.3.7: signature, name and extra lengths


@dataclass(frozen=True)
class Member:
    """One ``.npy`` inside the zip; ``offset`` is that of its first sample, None if compressed."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int | None

    @property
    def size_bytes(self) -> int:
        """Of the array, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_members(archive: zipfile.ZipFile, path: Path, names: list[str]) -> dict[str, Member]:
    """The named arrays' headers; DataError if one is missing or cannot be used."""
    found = {x.filename.removesuffix(".npy"): x for x in archive.infolist()}
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            where=printable(path),
            expected=f"the arrays {', '.join(names)}",
            got=f"no {', '.join(missing)}; it holds {', '.join(sorted(found)[:16]) or 'nothing'}",
            todo="save them with numpy.savez(path, **{name: array, ...})",
        )
    return {name: _read_member(archive, found[name], path) for name in names}


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Member:
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
            raise damaged(path, f"{info.filename}: {error}") from error
        header_bytes = file.tell()
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise DataError(
            where=where,
            expected="plain numbers in C order",
            got="Python objects" if dtype.hasobject else "Fortran order",
            todo="save numpy.ascontiguousarray(array) of a number type",
        )
    member = Member(info, shape, dtype, None)
    if header_bytes + member.size_bytes != info.file_size:
        raise damaged(path, f"{info.filename} holds {info.file_size} bytes, not what it declares")
    if info.compress_type != zipfile.ZIP_STORED:
        return member
    offset = _data_offset(path, info) + header_bytes
    if offset + member.size_bytes > path.stat().st_size:
        raise damaged(path, f"it ends inside {info.filename}")
    return Member(info, shape, dtype, offset)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin; the local header's lengths differ from the directory's."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        raw = file.read(_LOCAL_HEADER.size)
    if len(raw) < _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
        raise damaged(path, f"no header of {info.filename}")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
    return int(info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)


def read_array(archive: zipfile.ZipFile, member: Member, path: Path) -> Row:
    """A whole array."""
    with archive.open(member.info) as file:
        try:
            array: Row = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise damaged(path, f"{member.info.filename}: {error}") from error
    return array


def damaged(path: Path, reason: str) -> DataError:
    """The error of a file that is not whole."""
    return DataError(
        where=printable(path),
        expected="a complete .npz file",
        got=reason or "something else",
        todo="copy or save the file again",
    )
