"""Write a bundle: the weights, the checksums, and all of it as one folder or one tar file.

Whatever happens, ``out`` is afterwards either what it was before or the whole new bundle. The tar
of the same files is always the same bytes: no times, owners or modes of the packing host enter.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from s2a_edge.spec.bundle_files import (
    WEIGHTS_NAME,
    Listing,
    check_files,
    check_hash,
    read_folder_listing,
)
from s2a_edge.spec.bundle_graphs import check_graphs
from s2a_edge.spec.bundle_tar import Member
from s2a_edge.spec.checksums import CHUNK_BYTES, SUMS_NAME, format_sums, sha256_file
from s2a_edge.spec.errors import BundleError, InternalError, UsageError
from s2a_edge.spec.manifest import (
    MANIFEST_NAME,
    WEIGHTS_ALIGNMENT_BYTES,
    Manifest,
    WeightDType,
    WeightEntry,
)
from s2a_edge.spec.manifest_checks import ITEM_BYTES
from s2a_edge.spec.storage import (
    replacing,
    require_free_space,
    storage_errors,
    sync_file,
    sync_folder,
)
from s2a_edge.spec.trust import SIGNATURE_NAME

TAR_SUFFIX = ".s2a"
TAR_BLOCK_BYTES = 512
MAX_TAR_FILE_BYTES = 8**11 - 1  # ustar: eleven octal digits
_DOING = "to write the bundle"


def write_weights(
    path: Path, tensors: Iterable[tuple[str, np.ndarray[Any, Any]]]
) -> list[WeightEntry]:
    """Write ``weights.bin``: little-endian, row-major tensors, each at a page boundary.

    Args:
        path: the file to write; replaced only when all of it is there.
        tensors: names and arrays, taken one at a time; at most one is copied (where it is not
            row-major), and none is kept.

    Returns:
        The table for the manifest, in the order of ``tensors``.

    Raises:
        BundleError: a name repeats, or a dtype cannot be stored.
        StorageError: no space, no permission.
    """
    entries: list[WeightEntry] = []
    names: set[str] = set()
    with replacing(path, "to write the weights") as file:
        for name, array in tensors:
            if name in names or array.dtype.name not in ITEM_BYTES:
                raise BundleError(
                    where=f"weight {name}",
                    expected=f"a new name and one of {', '.join(ITEM_BYTES)}",
                    got=array.dtype.name,
                    todo="cast the weight, or report this",
                )
            names.add(name)
            file.write(bytes(-file.tell() % WEIGHTS_ALIGNMENT_BYTES))
            offset = file.tell()
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            # reshape, because tobytes() and the like would copy what can be written as it lies.
            file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
            dtype = cast(WeightDType, array.dtype.name)
            entries.append(WeightEntry(name, dtype, tuple(array.shape), offset, array.nbytes))
    return entries


def write_bundle(staging_dir: Path, manifest: Manifest, out: Path) -> Path:
    """Finish the bundle in ``staging_dir`` and put it at ``out``.

    Args:
        staging_dir: holds exactly :meth:`Manifest.files`; gains the manifest and ``SHA256SUMS``.
            It is moved away if ``out`` is a folder, and left to the caller otherwise.
        manifest: what the bundle is.
        out: ``NAME.s2a`` for one tar file, any other name for a folder. An existing bundle there
            is replaced at the very end.

    Returns:
        ``out``.

    Raises:
        UsageError: ``out`` exists and is no bundle.
        BundleError: the graphs or files contradict the manifest.
        StorageError: no space, no permission; nothing is left behind.
    """
    as_tar = out.suffix == TAR_SUFFIX and not out.is_dir()
    _check_replaceable(out, as_tar)
    with storage_errors(staging_dir, _DOING):
        _describe(staging_dir, manifest)
        listing = read_folder_listing(staging_dir)
        check_files(staging_dir, listing, hashes=False)
        check_graphs(manifest, staging_dir)
    if as_tar:
        _write_tar(staging_dir, listing, out)
    else:
        _move_folder(staging_dir, listing, out)
    return out


def _check_replaceable(out: Path, as_tar: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    is_bundle = (out / MANIFEST_NAME).is_file() and (out / SUMS_NAME).is_file()
    if as_tar and out.is_file():
        with storage_errors(out, _DOING), out.open("rb") as file:
            is_bundle = file.read(len(MANIFEST_NAME) + 1) in (b"", f"{MANIFEST_NAME}\0".encode())
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if not is_bundle and not is_empty_folder:
        raise UsageError(
            where=str(out),
            expected="a new path, or a bundle to replace",
            got="something that is not a bundle",
            todo="choose another --out, or remove it first",
        )


def _describe(staging_dir: Path, manifest: Manifest) -> None:
    """Write the manifest and ``SHA256SUMS`` beside the files they describe."""
    found = {p.name for p in staging_dir.iterdir()} - {MANIFEST_NAME, SUMS_NAME}
    if found != set(manifest.files()):
        raise InternalError(
            where=str(staging_dir),
            expected=", ".join(sorted(manifest.files())),
            got=", ".join(sorted(found)),
            todo="report this",
        )
    content = manifest.to_json().encode()
    sums = {MANIFEST_NAME: hashlib.sha256(content).hexdigest()}
    sums |= {name: sha256_file(staging_dir / name) for name in manifest.files()}
    (staging_dir / MANIFEST_NAME).write_bytes(content)
    (staging_dir / SUMS_NAME).write_bytes(format_sums(sums))


def _write_tar(staging_dir: Path, listing: Listing, out: Path) -> None:
    # What describes the rest comes first, the weights come last: a reader of a stream knows what
    # to expect before it has to store anything.
    names = [MANIFEST_NAME, SUMS_NAME, *(n for n in listing.sums if n != MANIFEST_NAME)]
    names.sort(key=WEIGHTS_NAME.__eq__)
    sizes = {name: (staging_dir / name).stat().st_size for name in names}
    if max(sizes.values()) > MAX_TAR_FILE_BYTES:
        raise BundleError(
            where=str(out),
            expected=f"files of at most {MAX_TAR_FILE_BYTES} bytes (tar's limit)",
            got=str(max(sizes.values())),
            todo="write a folder: give --out a name that does not end in .s2a",
        )
    require_free_space(out.parent, sum(sizes.values()) + TAR_BLOCK_BYTES * (2 * len(names) + 2))
    with replacing(out, _DOING) as file:
        for name, size_bytes in sizes.items():
            file.write(_tar_header(name, size_bytes))
            with (staging_dir / name).open("rb") as source:
                _copy(source, file)
            file.write(bytes(-size_bytes % TAR_BLOCK_BYTES))
        file.write(bytes(2 * TAR_BLOCK_BYTES))  # the end mark


def write_tar_members(
    source: BinaryIO,
    members: Mapping[str, Member],
    listing: Listing,
    signature: bytes,
    out: Path,
) -> None:
    """Write the bundle of the tar ``source`` to ``out`` with another signature.

    Args:
        source: a bundle's tar; ``out`` may be its path, it is replaced when all is written.
        members: its files.
        listing: what they must be; every byte is compared on the way.
        signature: new content of ``SHA256SUMS.sig``.
        out: the file to create or replace.

    Raises:
        BundleIntegrityError: a file is not what ``listing`` says; ``out`` is unchanged.
        StorageError: no space, no permission.
    """
    kept = [member for name, member in members.items() if name != SIGNATURE_NAME]
    require_free_space(out.parent, sum(m.size_bytes + 2 * TAR_BLOCK_BYTES for m in kept))
    with replacing(out, "to sign the bundle") as file:
        for member in kept:
            file.write(_tar_header(member.name, member.size_bytes))
            digest = hashlib.sha256()
            source.seek(member.offset)
            left_bytes = member.size_bytes
            while left_bytes and (chunk := source.read(min(CHUNK_BYTES, left_bytes))):
                digest.update(chunk)
                file.write(chunk)
                left_bytes -= len(chunk)
            if member.name != SUMS_NAME:  # whose content is what was signed
                check_hash(member.name, listing.sums[member.name], digest.hexdigest())
            file.write(bytes(-member.size_bytes % TAR_BLOCK_BYTES))
            if member.name == SUMS_NAME:
                file.write(_tar_header(SIGNATURE_NAME, len(signature)))
                file.write(signature + bytes(-len(signature) % TAR_BLOCK_BYTES))
        file.write(bytes(2 * TAR_BLOCK_BYTES))


def _tar_header(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size_bytes, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)


def _move_folder(staging_dir: Path, listing: Listing, out: Path) -> None:
    with storage_errors(out, _DOING):
        source = staging_dir
        if staging_dir.stat().st_dev != out.parent.stat().st_dev:
            source = _copy_folder(staging_dir, listing, out)
        try:
            for name in (*listing.sums, SUMS_NAME):
                (source / name).chmod(0o644)
                sync_file(source / name)
            source.chmod(0o755)  # temporary folders are closed to other users
            sync_folder(source)
            rename_over(source, out)
        except BaseException:
            if source != staging_dir:
                shutil.rmtree(source, ignore_errors=True)
            raise
        sync_folder(out.parent)


def rename_over(source: Path, out: Path) -> None:
    """Give folder ``source`` the name ``out``; a folder that has it goes, but only then."""
    if not out.exists():
        source.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.old-", dir=out.parent))
    try:
        out.rename(aside / out.name)
        source.rename(out)
    except BaseException:
        if not out.exists():
            (aside / out.name).rename(out)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _copy_folder(staging_dir: Path, listing: Listing, out: Path) -> Path:
    """A copy of the bundle beside ``out``: a rename cannot cross file systems."""
    names = (*listing.sums, SUMS_NAME)
    require_free_space(out.parent, sum((staging_dir / n).stat().st_size for n in names))
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.new-", dir=out.parent))
    try:
        for name in names:
            with (staging_dir / name).open("rb") as source, (folder / name).open("wb") as target:
                _copy(source, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
