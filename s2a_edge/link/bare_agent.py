"""What a board can do for a host without s2a-edge: tell of itself, take blobs and a runtime.

Standard library only. :mod:`s2a_edge.link.agent` adds what needs the package.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from s2a_edge.link.blobs import Blob, BlobStore, read_blob, remove
from s2a_edge.link.board_folder import TRUST, asks_for_signatures, require_own_folders
from s2a_edge.link.messages import OnNote, Request, bad_request
from s2a_edge.link.offered import require_offered
from s2a_edge.spec.errors import BundleError, SignatureError
from s2a_edge.spec.storage import require_free_space, storage_errors, sync_folder

PROTOCOL = 1
MAX_BLOBS = 256
_MAX_RUNTIME_BYTES = 64 * 2**20
_MAX_RUNTIME_FILES = 4096
# What zipfile raises for whatever is no zip, or one that it cannot unpack.
_NO_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)


def handle(root: Path, request: Request, on_note: OnNote) -> Any:
    """Carry out one request.

    Args:
        root: the board's folder.
        request: see the functions below for the fields of each ``op``.
        on_note: told what takes long.

    Returns:
        The value of the answer, JSON-ready.

    Raises:
        S2AError: it was not carried out.
    """
    operation = request.get("op")
    require_own_folders(root)
    if operation == "hello":
        return hello(root)
    if operation == "held":
        return held(root, _blobs(request))
    if operation == "admit":
        return admit(root, _blobs(request), on_note)
    if operation == "runtime":
        return install_runtime(root, read_blob(request.get("blob")))
    raise bad_request(str(operation))


def hello(root: Path) -> dict[str, Any]:
    """What this board is, in short; None where it does not know."""
    near = root
    while not near.exists() and near != near.parent:
        near = near.parent
    return {
        "protocol": PROTOCOL,
        "machine": platform.machine(),
        "model": _first_line("/proc/device-tree/model"),
        "python": platform.python_version(),
        "free_bytes": shutil.disk_usage(near).free,
        "mem_total_bytes": _meminfo("MemTotal"),
        "mem_available_bytes": _meminfo("MemAvailable"),
        "has_runtime": (root / "runtime").is_dir(),
        "has_trust": asks_for_signatures(root),
    }


def held(root: Path, blobs: list[Blob]) -> dict[str, int]:
    """How many bytes of each blob are there, by hash; refuses what has no room or no signer."""
    require_offered(root, blobs)
    store = BlobStore(root)
    store.require_space(blobs)
    return {blob.sha256: store.held_bytes(blob) for blob in blobs}


def admit(root: Path, blobs: list[Blob], on_note: OnNote) -> int:
    """Take blobs that arrived into the store; the number of them."""
    store = BlobStore(root)
    if not all(store.is_whole(blob) for blob in blobs):
        on_note("verifying what arrived")
    for blob in blobs:
        store.admit(blob)
    return len(blobs)


def install_runtime(root: Path, blob: Blob) -> str:
    """Unpack the package that runs a bundle to ``ROOT/runtimes/<hash>``, and use it.

    Code that arrives is only taken where anybody may flash: with a folder of trusted keys, the
    package is installed by whoever set up the board.
    """
    if asks_for_signatures(root):
        raise SignatureError(
            where="--with-runtime",
            expected="a board that takes bundles from anybody",
            got=f"one with trusted keys in {root / TRUST}",
            todo="install the package on the board yourself, then flash without --with-runtime",
        )
    folder = root / "runtimes" / blob.sha256
    staging = root / "runtimes" / f".new-{blob.sha256}"
    with storage_errors(folder, "to unpack the runtime"):
        if not folder.is_dir():
            if staging.exists():
                shutil.rmtree(staging)
            staging.mkdir(parents=True)
            _extract(BlobStore(root).path(blob.sha256), staging)
            for inner in (staging, *(p for p in staging.rglob("*") if p.is_dir())):
                sync_folder(inner)
            staging.rename(folder)
            sync_folder(folder.parent)
        link = root / ".runtime.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("runtimes") / blob.sha256)
        link.replace(root / "runtime")
        sync_folder(root)
        for other in folder.parent.iterdir():
            if other != folder:
                remove(other)
    return str(folder)


def _extract(package: Path, folder: Path) -> None:
    """Unpack a zip of plain files below ``folder``; names and sizes are checked first."""
    try:
        with zipfile.ZipFile(package) as archive:
            entries = archive.infolist()
            for entry in entries:
                parts = Path(entry.filename).parts
                is_plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
                if not is_plain or ".." in parts or Path(entry.filename).is_absolute():
                    raise _not_a_runtime(f"the name {entry.filename[:80]!a}")
            total_bytes = sum(entry.file_size for entry in entries)
            if total_bytes > _MAX_RUNTIME_BYTES or len(entries) > _MAX_RUNTIME_FILES:
                raise _not_a_runtime(f"{total_bytes} bytes in {len(entries)} files")
            require_free_space(folder, total_bytes)
            for entry in entries:
                archive.extract(entry, folder)
                if not entry.is_dir():
                    with (folder / entry.filename).open("rb") as file:
                        os.fsync(file.fileno())
    except _NO_ZIP as error:
        raise _not_a_runtime(str(error)[:80]) from error


def _not_a_runtime(got: str) -> BundleError:
    return BundleError(
        where="runtime",
        expected="the zip that `s2a-edge flash --with-runtime` makes",
        got=got,
        todo="flash again",
    )


def _blobs(request: Request) -> list[Blob]:
    given = request.get("blobs")
    if not isinstance(given, list) or len(given) > MAX_BLOBS:
        raise bad_request(f"blobs {given!a}")
    return [read_blob(value) for value in given]


def _first_line(path: str) -> str | None:
    try:
        text = Path(path).read_bytes()[:200].split(b"\0")[0].decode("ascii", "replace")
    except OSError:
        return None
    return text.strip() if text.isprintable() else None


def _meminfo(key: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if words[:1] == [f"{key}:"] and len(words) > 1 and words[1].isdecimal():
            return int(words[1]) * 1024
    return None
