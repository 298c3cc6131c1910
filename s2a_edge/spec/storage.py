"""Files that are either whole or absent, and the file system's refusals in our words."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from s2a_edge.spec.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
# Directory entries, inodes and the last block of each file: not worth counting exactly.
_SPARE_BYTES = 2**20


@contextmanager
def storage_errors(where: Path, doing: str) -> Iterator[None]:
    """Turn any OSError inside into a :class:`StorageError`.

    Args:
        where: file or folder that is being worked on.
        doing: what was expected to work, ``to write the bundle``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            where=str(where),
            expected=doing,
            got=error.strerror or type(error).__name__,
            todo=_advice(error.errno, where),
        ) from error


def _advice(code: int | None, where: Path) -> str:
    if code in _FULL:
        return "free some space, or choose a folder on another disk"
    if code in _REFUSED:
        return f"make {where.parent} writable, or choose another folder"
    return "check the disk and the path, then try again"


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start writing what cannot fit.

    Raises:
        StorageError: ``folder``'s file system has less than ``needed_bytes`` and a little spare.
    """
    with storage_errors(folder, "to measure free space"):
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise StorageError(
            where=str(folder),
            expected=f"{needed_bytes + _SPARE_BYTES} free bytes",
            got=f"{free_bytes}",
            todo=_advice(errno.ENOSPC, folder),
        )


@contextmanager
def replacing(out: Path, doing: str) -> Iterator[BinaryIO]:
    """A file to write that becomes ``out`` when the block ends well, and vanishes otherwise.

    The bytes are on the disk before ``out`` changes its name: after a power cut ``out`` is the old
    file or the new one. An existing ``out`` stays as it is until then.

    Args:
        out: the file to create or replace.
        doing: for errors, ``to write the bundle``.

    Raises:
        StorageError: the file system refused.
    """
    with storage_errors(out, doing):
        descriptor, name = tempfile.mkstemp(prefix=f".{out.name[:100]}.", dir=out.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide it from other users
                os.fsync(file.fileno())
            temporary.replace(out)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(out.parent)


def sync_file(path: Path) -> None:
    """Put a finished file's bytes on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Put a folder's entries on the disk, so that a rename in it survives a power cut."""
    sync_file(path)
