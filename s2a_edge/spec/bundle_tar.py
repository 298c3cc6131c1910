"""The table of contents of a bundle that is one tar file, read as if someone hostile had made it.

Only what :mod:`s2a_edge.spec.bundle_write` makes (and plain ``tar`` of the same files) is read:
regular files with plain names, each once. Links, devices, folders, sparse files, and the headers
by which extended formats rename or resize the member after them, are refused by their type.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from s2a_edge.spec.bundle_files import integrity_error
from s2a_edge.spec.checksums import SUMS_NAME
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.manifest import MANIFEST_NAME

BLOCK_BYTES = 512
MAX_MEMBERS = 128
_MAX_PADDING_BYTES = 65_536  # tar fills its last record, 10 KiB by default, with zeros
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd", b"PK": "zip"}


@dataclass(frozen=True)
class Member:
    """One file inside a tar: its content is ``size_bytes`` bytes at ``offset``."""

    name: str
    offset: int
    size_bytes: int


def read_members(file: BinaryIO, where: str) -> dict[str, Member]:
    """All members by name, in file order; only headers are read.

    Args:
        file: the tar, seekable.
        where: its name, for errors.

    Raises:
        BundleError: it is no tar, or holds what a bundle does not.
        BundleIntegrityError: it is cut off or damaged.
    """
    total_bytes = file.seek(0, 2)
    _check_is_tar(file, where)
    members: dict[str, Member] = {}
    position = 0
    while True:
        file.seek(position)
        block = file.read(BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            integrity_error(where, "a tar file with an end mark", "one that was cut off")
        if not any(block):
            _check_end(file, where)
            return members
        member = _read_header(block, position + BLOCK_BYTES, where)
        if member.offset + member.size_bytes > total_bytes:
            got = f"{total_bytes} bytes: the file was cut off"
            integrity_error(f"{where}: {member.name}", f"{member.size_bytes} bytes", got)
        if member.name in members:
            _refuse(where, "every file once", f"{member.name} again")
        members[member.name] = member
        if len(members) > MAX_MEMBERS:
            _refuse(where, f"at most {MAX_MEMBERS} files", "more")
        padded_bytes = -(-member.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        position = member.offset + padded_bytes


def check_order(members: dict[str, Member], where: str) -> None:
    """The manifest and ``SHA256SUMS`` come before what they describe."""
    first = list(members)[:2]
    if first != [MANIFEST_NAME, SUMS_NAME]:
        _refuse(where, f"{MANIFEST_NAME} and {SUMS_NAME} first", ", ".join(first) or "no files")


def _check_is_tar(file: BinaryIO, where: str) -> None:
    file.seek(0)
    start = file.read(BLOCK_BYTES)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            _refuse(where, "an uncompressed tar", f"{kind} data", "unpack it first")
    if start and not start.startswith(MANIFEST_NAME.encode()) and start[257:262] != b"ustar":
        _refuse(where, "a bundle that `s2a-edge pack` made", "another kind of file")


def _read_header(block: bytes, content_offset: int, where: str) -> Member:
    try:
        # surrogateescape never fails, and what it makes of other bytes is no plain name.
        info = tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
    except tarfile.HeaderError:
        place = f"{where}: byte {content_offset - BLOCK_BYTES}"
        integrity_error(place, "a tar header", "damaged bytes")
    if info.type not in _REGULAR or info.linkname:
        _refuse(where, "plain files only", f"a link, folder or device: {info.name[:100]!a}")
    if _PLAIN_NAME.fullmatch(info.name) is None:
        _refuse(where, "plain file names, no folders", f"{info.name[:100]!a}")
    if info.size < 0:
        _refuse(f"{where}: {info.name}", "a size", str(info.size))
    return Member(info.name, content_offset, info.size)


def _check_end(file: BinaryIO, where: str) -> None:
    """Behind the last member: the second zero block, then at most padding."""
    rest = file.read(_MAX_PADDING_BYTES)
    if len(rest) < BLOCK_BYTES:
        integrity_error(where, "a tar file with an end mark", "one that was cut off")
    if any(rest) or file.read(1):
        _refuse(where, "nothing behind the end mark", "more data")


def _refuse(
    where: str, expected: str, got: str, todo: str = "use the file that `s2a-edge pack` wrote"
) -> None:
    raise BundleError(where=where, expected=expected, got=got, todo=todo)
