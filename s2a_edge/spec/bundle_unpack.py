"""From a bundle's tar file to the folder the runtime works on.

ONNX Runtime opens graphs by path and maps ``weights.bin``, so a tar is unpacked once, to
``NAME.s2a.unpacked-<hash>`` beside it, and reused from then on; the hash is that of ``SHA256SUMS``,
so another bundle under the same name gets another folder. Where that place cannot be written, a
temporary folder serves until the bundle is closed.

A folder appears under its final name only when all of its bytes are checked and on the disk. One
process unpacks at a time: it holds a lock on the tar. Every open bundle holds a shared lock on its
folder, so that folders of former contents, and halves left by a killed process, can be removed as
soon as nobody uses them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from s2a_edge.spec.bundle_files import (
    Listing,
    check_files,
    check_hash,
    check_size,
    integrity_error,
    read_listing,
)
from s2a_edge.spec.bundle_tar import Member, check_order, read_members
from s2a_edge.spec.checksums import CHUNK_BYTES, MAX_SUMS_BYTES, SUMS_NAME
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from s2a_edge.spec.storage import require_free_space, storage_errors, sync_folder
from s2a_edge.spec.trust import MAX_SIGNATURE_BYTES, SIGNATURE_NAME, TrustStore

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_CACHE = re.compile(r"\.(unpacked-[0-9a-f]{12}|unpacking-[A-Za-z0-9_]+)")


@dataclass(frozen=True)
class Unpacked:
    """A folder with the content of a tar.

    Attributes:
        folder: where it is.
        listing: what the bundle says of itself.
        lock: file descriptor whose shared lock keeps the folder; close it when done.
        is_temporary: whether to remove the folder then.
    """

    folder: Path
    listing: Listing
    lock: int
    is_temporary: bool


def unpack(path: Path, *, verify: bool, trust: TrustStore | None = None) -> Unpacked:
    """The folder for the bundle in the tar ``path``: one made before, or a new one.

    Args:
        path: the ``.s2a`` file.
        verify: whether to read again every byte of a folder made before.
        trust: who must have signed; None: nobody has to.

    Raises:
        BundleError: the tar is not a bundle's.
        BundleIntegrityError: bytes are missing or changed.
        StorageError: no space, or no place to write.
    """
    with storage_errors(path, "to unpack the bundle"), path.open("rb") as file:
        _lock(file.fileno(), fcntl.LOCK_EX)
        members = read_members(file, path.name)
        check_order(members, path.name)
        listing = check_members(file, members, path.name, trust)
        cache = path.parent / f"{path.name}.unpacked-{listing.hash[:12]}"
        if not _is_complete(cache, listing, verify=verify):
            return _unpack_new(file, members, listing, cache, path)
        lock = _lock_folder(cache, fcntl.LOCK_SH)
        _remove_unused(path)
        return Unpacked(cache, listing, lock, is_temporary=False)


def check_members(
    file: BinaryIO, members: dict[str, Member], where: str, trust: TrustStore | None = None
) -> Listing:
    """The listing inside a tar; all members are in it, and none is larger than it allows.

    Raises:
        BundleError: the members are not those of a bundle, or nobody of ``trust`` has signed.
    """
    contents = []
    limits = {MANIFEST_NAME: MAX_MANIFEST_BYTES, SUMS_NAME: MAX_SUMS_BYTES}
    limits |= {SIGNATURE_NAME: MAX_SIGNATURE_BYTES} if SIGNATURE_NAME in members else {}
    for name, limit in limits.items():
        check_size(name, members[name].size_bytes, 1, limit)
        file.seek(members[name].offset)
        contents.append(file.read(members[name].size_bytes))
    signature = contents[2] if len(contents) > 2 else None
    listing = read_listing(contents[0], contents[1], signature, trust)
    expected = {*listing.sums, *limits}
    if members.keys() != expected:
        differing = ", ".join(sorted(members.keys() ^ expected))
        raise BundleError(
            where=where,
            expected=f"the files that {SUMS_NAME} lists",
            got=f"a difference in {differing[:200]}",
            todo="copy the bundle again, or pack it again",
        )
    for name, member in members.items():
        check_size(name, member.size_bytes, *listing.size_limits(name))
    return listing


def _is_complete(folder: Path, listing: Listing, *, verify: bool) -> bool:
    """Whether ``folder`` holds exactly this bundle, intact."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        if (folder / SUMS_NAME).read_bytes() != listing.sums_content:
            return False
        check_files(folder, listing, hashes=verify)
    except (BundleError, OSError):
        return False
    return True


def _unpack_new(
    file: BinaryIO, members: dict[str, Member], listing: Listing, cache: Path, path: Path
) -> Unpacked:
    _remove_unused(path)
    folder, is_temporary = _new_folder(path)
    lock = _lock_folder(folder, fcntl.LOCK_SH)
    try:
        require_free_space(folder, sum(m.size_bytes for m in members.values()))
        for member in members.values():
            # The line of SHA256SUMS itself is missing there; its content is already compared.
            digest = listing.sums.get(member.name)
            _extract(file, member, folder / member.name, digest)
        sync_folder(folder)
        if not is_temporary:
            folder.chmod(0o755)
            if cache.is_symlink() or cache.exists():
                _discard(cache)
            folder = folder.rename(cache)
            sync_folder(cache.parent)
    except BaseException:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Unpacked(folder, listing, lock, is_temporary)


def _extract(file: BinaryIO, member: Member, target: Path, expected_hash: str | None) -> None:
    """Copy one member to ``target``, to the disk, and compare its hash on the way."""
    digest = hashlib.sha256()
    file.seek(member.offset)
    left_bytes = member.size_bytes
    with target.open("xb") as out:
        while left_bytes:
            chunk = file.read(min(CHUNK_BYTES, left_bytes))
            if not chunk:
                integrity_error(member.name, f"{left_bytes} more bytes", "the end of the tar")
            digest.update(chunk)
            out.write(chunk)
            left_bytes -= len(chunk)
        out.flush()
        os.fsync(out.fileno())
    if expected_hash is not None:
        check_hash(member.name, expected_hash, digest.hexdigest())


def _new_folder(path: Path) -> tuple[Path, bool]:
    """An empty folder to unpack into, and whether it is a temporary one."""
    try:
        name = tempfile.mkdtemp(prefix=f"{path.name}.unpacking-", dir=path.parent)
        return Path(name), False
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
    # Not /tmp unless asked for: on boards it is often memory, which is what we must not spend.
    base = None if "TMPDIR" in os.environ or not os.access("/var/tmp", os.W_OK) else "/var/tmp"
    return Path(tempfile.mkdtemp(prefix="s2a-bundle-", dir=base)), True


def _remove_unused(path: Path) -> None:
    """Remove folders of ``path`` that no process holds: former contents, halves."""
    for folder in path.parent.iterdir():
        suffix = folder.name.removeprefix(path.name)
        is_ours = suffix != folder.name and _CACHE.fullmatch(suffix)
        if not is_ours or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            lock = _lock_folder(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # in use, or not ours to touch
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _lock_folder(folder: Path, mode: int) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(descriptor, mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, mode: int) -> None:
    try:
        fcntl.flock(descriptor, mode)
    except OSError as error:
        # Network file systems may lack locks. Work goes on without them; removal does not.
        if error.errno == errno.EWOULDBLOCK or mode & fcntl.LOCK_NB:
            raise
