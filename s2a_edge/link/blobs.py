"""The content-addressed store of a board: files named by their SHA-256.

Bytes that arrive are appended to ``incoming/<hash>``; when all are there and the hash is right, the
file is brought to the disk, made read-only and renamed to ``blobs/<hash>``. Whatever is in
``blobs`` is therefore whole. Releases are hard links to it, so the same weights are stored once and
sent once.

Standard library only: a board without s2a-edge runs this, too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.link.board_folder import require_own_folders
from s2a_edge.spec.errors import BundleIntegrityError, LinkError, StorageError
from s2a_edge.spec.storage import require_free_space, storage_errors, sync_folder

MAX_BLOB_BYTES = 2**40
CHUNK_BYTES = 2**20
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """A file by content: its SHA-256 (64 hex digits) and its size."""

    sha256: str
    size_bytes: int


def read_blob(value: object) -> Blob:
    """``[hash, size]`` from a message that anyone may have written.

    Raises:
        LinkError: it is not that.
    """
    if isinstance(value, list) and len(value) == 2:
        sha256, size_bytes = value
        known = isinstance(sha256, str) and _HASH.fullmatch(sha256)
        if known and type(size_bytes) is int and 0 <= size_bytes <= MAX_BLOB_BYTES:
            return Blob(str(sha256), size_bytes)
    raise LinkError(
        where="request",
        expected="[SHA-256, size]",
        got=ascii(value)[:80],
        todo="use the same version of s2a-edge on both sides",
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class BlobStore:
    """The blobs below a board's folder.

    Args:
        root: the board's folder; ``blobs`` and ``incoming`` are made in it when first written.
    """

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.incoming = root / "incoming"

    def path(self, sha256: str) -> Path:
        """Where a blob is, if it is there."""
        assert _HASH.fullmatch(sha256), sha256
        return self.blobs / sha256

    def held_bytes(self, blob: Blob) -> int:
        """How much of a blob is there: all of it, or what has arrived so far.

        Something else under its name is removed.
        """
        with storage_errors(self.incoming, "to look at what is there"):
            if _regular_bytes(self.path(blob.sha256)) == blob.size_bytes:
                return blob.size_bytes
            arrived_bytes = _regular_bytes(self.incoming / blob.sha256)
            if arrived_bytes is None or arrived_bytes <= blob.size_bytes:
                return arrived_bytes or 0
            (self.incoming / blob.sha256).unlink()
        return 0

    def is_whole(self, blob: Blob) -> bool:
        """Whether the blob is in the store."""
        return _regular_bytes(self.path(blob.sha256)) == blob.size_bytes

    def require_space(self, blobs: Iterable[Blob]) -> None:
        """Refuse what cannot fit before any of it is sent.

        Raises:
            StorageError: too little space, or the folder cannot be made.
        """
        self.make_folders()
        missing_bytes = sum(blob.size_bytes - self.held_bytes(blob) for blob in set(blobs))
        require_free_space(self.incoming, missing_bytes)

    def append(self, blob: Blob, offset: int, content: bytes) -> int:
        """Add bytes to what has arrived of a blob.

        Args:
            blob: which one.
            offset: of ``content`` in it; must be where it ends now.
            content: the bytes.

        Returns:
            How much is there now.

        Raises:
            LinkError: the offset is another, or the bytes are more than the blob has.
            StorageError: no space, no permission.
        """
        path = self.incoming / blob.sha256
        if offset + len(content) > blob.size_bytes:
            raise _out_of_place(blob, f"at most {blob.size_bytes} bytes", offset + len(content))
        with storage_errors(path, "to store what arrives"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
                arrived_bytes = file.seek(0, os.SEEK_END)
                if arrived_bytes != offset:
                    raise _out_of_place(blob, f"offset {arrived_bytes}", offset)
                file.write(content)
        return offset + len(content)

    def admit(self, blob: Blob) -> None:
        """Take a blob that has arrived into the store, if its bytes are right.

        Raises:
            BundleIntegrityError: they are not; they are removed, so that they are sent again.
            LinkError: not all have arrived.
            StorageError: the file system refused.
        """
        if self.is_whole(blob):
            (self.incoming / blob.sha256).unlink(missing_ok=True)
            return
        self.make_folders()
        path = self.incoming / blob.sha256
        with storage_errors(path, "to take in what arrived"):
            if _regular_bytes(path) is None and blob.size_bytes == 0:
                path.touch()
            arrived_bytes = _regular_bytes(path)
            if arrived_bytes != blob.size_bytes:
                raise _out_of_place(blob, f"{blob.size_bytes} bytes", arrived_bytes or 0)
            found = sha256_of(path)
            if found != blob.sha256:
                path.unlink()
                raise BundleIntegrityError(
                    where=f"blob {blob.sha256[:12]}",
                    expected=f"SHA-256 {blob.sha256[:16]}…",
                    got=f"{found[:16]}…: damaged on the way or by the disk",
                    todo="flash again: it is sent anew",
                )
            _sync_read_only(path)
            path.replace(self.path(blob.sha256))
            sync_folder(self.blobs)

    def discard(self, sha256: str) -> None:
        """Remove a blob, whole or not."""
        for folder in (self.blobs, self.incoming):
            (folder / sha256).unlink(missing_ok=True)

    def remove_others(self, kept: Collection[str]) -> int:
        """Remove all blobs but those of ``kept``, and everything half-arrived.

        Returns:
            How many bytes that freed, as far as nothing else links to them.
        """
        freed_bytes = 0
        for folder in (self.blobs, self.incoming):
            for path in folder.iterdir() if folder.is_dir() else ():
                if folder == self.incoming or path.name not in kept:
                    status = path.lstat()
                    freed_bytes += status.st_size if status.st_nlink == 1 else 0
                    remove(path)
        return freed_bytes

    def make_folders(self) -> None:
        """Make the store's folders.

        Raises:
            StorageError: they cannot be made.
        """
        require_own_folders(self.blobs.parent)
        for folder in (self.blobs, self.incoming):
            with storage_errors(folder, "to make the board's folder"):
                folder.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """``target`` with the bytes of ``source``: a hard link, or a copy where there are none.

    ``target`` appears whole or not at all; what has its name is replaced.
    """
    temporary = target.parent / f".{target.name}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV):
            raise
        shutil.copyfile(source, temporary)
        _sync_read_only(temporary)
    temporary.replace(target)


def _sync_read_only(path: Path) -> None:
    """Bring the bytes to the disk; nobody shall change them afterwards by accident."""
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())


def _regular_bytes(path: Path) -> int | None:
    """Size of a plain file; None if there is none. Anything else of that name is removed."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise StorageError(
            where=str(path.parent),
            expected="a folder",
            got="a file of that name",
            todo="give another path",
        ) from error
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    remove(path)
    return None


def _out_of_place(blob: Blob, expected: str, got: int) -> LinkError:
    return LinkError(
        where=f"blob {blob.sha256[:12]}",
        expected=expected,
        got=str(got),
        todo="flash again: it goes on from what is there",
    )
