"""``pull``: a run comes back from a board, its tuned values first of all."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2a_edge.link.blobs import Blob, read_blob, sha256_of
from s2a_edge.link.flash import Flashing, OnFlashing
from s2a_edge.link.transport import Incoming, Transport
from s2a_edge.spec.errors import LinkError, UsageError
from s2a_edge.spec.storage import require_free_space, storage_errors, sync_file, sync_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PATH = re.compile(r"(runs|outgoing)/[A-Za-z0-9][A-Za-z0-9._/-]{0,300}")
_MAX_FILES = 1000


@dataclass(frozen=True)
class Pulled:
    """What came: the run folder here, its files, and their bytes."""

    out: Path
    files: tuple[str, ...]
    size_bytes: int


def pull(
    transport: Transport,
    run: str,
    out: Path,
    *,
    is_full: bool = False,
    on_progress: OnFlashing = lambda now: None,
) -> Pulled:
    """Fetch a run into the folder ``out``.

    Args:
        transport: the way to the board.
        run: name of the run there.
        out: a new folder, or one that an earlier pull made: its files are replaced.
        is_full: everything, with the optimizer's state; otherwise parameters, metrics and logs.
        on_progress: told where it stands.

    Raises:
        UsageError: the board has no such run, or ``out`` is something else.
        LinkError: the way broke, or other bytes came than the board has; ``out`` is unchanged.
        StorageError: no space here, or no permission.
    """
    is_new = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not is_new and not (out / "run.json").is_file():
        raise UsageError(
            where=str(out),
            expected="a new folder, or a run that was pulled before",
            got="something else",
            todo="give another --out",
        )
    transport.notify = lambda text: on_progress(Flashing(text))
    answer = transport.call({"op": "run", "name": run, "full": is_full}, transport.notify)
    with storage_errors(out, "to write the run"):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:80]}.pull-", dir=out.parent))
        try:
            files = _files(answer, staging)
            _fetch(transport, files, staging, on_progress)
            out.mkdir(exist_ok=True)
            for incoming in files:
                incoming.target.replace(out / incoming.target.name)
            sync_folder(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    names = tuple(incoming.target.name for incoming in files)
    return Pulled(out, names, sum(incoming.blob.size_bytes for incoming in files))


def _fetch(
    transport: Transport, files: list[Incoming], staging: Path, on_progress: OnFlashing
) -> None:
    total_bytes = sum(incoming.blob.size_bytes for incoming in files)
    require_free_space(staging, total_bytes)
    rate = transport.bytes_per_s()
    done_bytes = 0

    def came(more_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += more_bytes
        estimate_s = total_bytes / rate if rate else None
        on_progress(Flashing("fetching", done_bytes, total_bytes, 0, estimate_s))

    came(0)
    transport.fetch(files, came)
    for incoming in files:
        if sha256_of(incoming.target) != incoming.blob.sha256:
            raise LinkError(
                where=incoming.target.name,
                expected="the bytes that the board has",
                got="others: damaged on the way, or the run goes on and changed it",
                todo="pull again",
            )
        sync_file(incoming.target)


def _files(answer: Any, folder: Path) -> list[Incoming]:
    """What the board offers, as far as it is what a board may offer."""
    entries = answer.get("files") if isinstance(answer, dict) else None
    if isinstance(entries, list) and 0 < len(entries) <= _MAX_FILES:
        files = [_file(entry, folder) for entry in entries]
        if len({incoming.target for incoming in files}) == len(files):
            return files
    raise _nonsense(answer)


def _file(entry: Any, folder: Path) -> Incoming:
    try:
        name, path = str(entry["name"]), str(entry["path"])
        blob: Blob = read_blob([entry["sha256"], entry["size_bytes"]])
    except (KeyError, TypeError) as error:
        raise _nonsense(entry) from error
    # A board is not trusted either: a name is a name, and goes into our own folder.
    if _NAME.fullmatch(name) is None or _PATH.fullmatch(path) is None or ".." in path:
        raise _nonsense(entry)
    return Incoming(path, blob, folder / name)


def _nonsense(got: object) -> LinkError:
    return LinkError(
        where="board",
        expected="the files of a run",
        got=ascii(got)[:100],
        todo="use the same version of s2a-edge on both sides",
    )
