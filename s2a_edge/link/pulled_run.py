"""A run on the board, made ready to be fetched.

Small: ``run.json``, ``metrics.jsonl``, logs, and the checkpoint without the optimizer's state, from
which `export` and `eval` work as from the whole run. Full: every file of the run. What has to be
made is made in ``ROOT/outgoing/RUN``; nothing of the run itself is touched.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from s2a_edge.link.blobs import CHUNK_BYTES, sha256_of
from s2a_edge.link.releases import Releases
from s2a_edge.link.tuned_state import read_header, run_bundle
from s2a_edge.spec.errors import CheckpointError, UsageError
from s2a_edge.spec.storage import replacing, require_free_space, storage_errors

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_CHECKPOINTS = ("best.safetensors", "last.safetensors")
_SMALL = re.compile(r"run\.json|metrics\.jsonl|[A-Za-z0-9][A-Za-z0-9._-]{0,90}\.(log|txt)")
_MAX_FILES = 1000


def list_runs(releases: Releases) -> list[dict[str, Any]]:
    """Runs on the board: name, bundle, and whether they have a checkpoint."""
    if not releases.runs.is_dir():
        return []
    found = [p for p in sorted(releases.runs.iterdir()) if _RUN_NAME.fullmatch(p.name)]
    return [
        {"name": path.name, "bundle": run_bundle(path), "checkpoint": _checkpoint(path) is not None}
        for path in found[:_MAX_FILES]
        if run_bundle(path) is not None
    ]


def offer_run(releases: Releases, name: str, *, is_full: bool) -> dict[str, Any]:
    """The files of a run to be fetched.

    Args:
        releases: of the board.
        name: of the run, below ``ROOT/runs``.
        is_full: every file, not only the small ones.

    Returns:
        ``{"files": [{"name", "path", "size_bytes", "sha256"}]}``; ``path`` is below the root.

    Raises:
        UsageError: there is no such run.
        CheckpointError: its checkpoint is damaged.
        StorageError: no space to make the small checkpoint.
    """
    folder = releases.runs / name
    if _RUN_NAME.fullmatch(name) is None or run_bundle(folder) is None:
        known = ", ".join(run["name"] for run in list_runs(releases)) or "none"
        raise UsageError(
            where=f"run {name[:80]!a}",
            expected=f"a run in {releases.runs}",
            got=f"no such run; there are: {known}",
            todo="give the name of one, the folder that was train's --out",
        )
    with storage_errors(folder, "to read the run"):
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.is_symlink()]
        if not is_full:
            checkpoint = _checkpoint(folder)
            files = [p for p in files if _SMALL.fullmatch(p.name)]
            if checkpoint is not None:
                files.append(_without_optimizer(checkpoint, releases.root / "outgoing" / name))
        described = [_describe(path, releases.root) for path in files[:_MAX_FILES]]
    return {"files": [entry for entry in described if _RUN_NAME.fullmatch(entry["name"])]}


def _describe(path: Path, root: Path) -> dict[str, Any]:
    return {
        "name": path.name,
        "path": str(path.relative_to(root)),
        "size_bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }


def _checkpoint(folder: Path) -> Path | None:
    """The best checkpoint, or else the last."""
    return next((folder / n for n in _CHECKPOINTS if (folder / n).is_file()), None)


def _without_optimizer(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint that holds parameters only; tensor by tensor, nothing in memory."""
    out = folder / checkpoint.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    require_free_space(folder, checkpoint.stat().st_size)
    with checkpoint.open("rb") as source:
        header, start = read_header(source, checkpoint)
        kept = {n: e for n, e in header.items() if n.startswith("param.")}
        made: dict[str, Any] = {"__metadata__": header.get("__metadata__", {})}
        offset = 0
        for name, entry in kept.items():
            begin, end = entry["data_offsets"]
            made[name] = {**entry, "data_offsets": [offset, offset + end - begin]}
            offset += end - begin
        text = json.dumps(made).encode()
        text += b" " * (-len(text) % 8)
        with replacing(out, "to write the small checkpoint") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in kept.values():
                begin, end = entry["data_offsets"]
                source.seek(start + begin)
                _copy(source, file, end - begin, checkpoint)
    return out


def _copy(source: Any, target: Any, size_bytes: int, where: Path) -> None:
    while size_bytes > 0:
        chunk = source.read(min(CHUNK_BYTES, size_bytes))
        if not chunk:
            raise CheckpointError(
                where=str(where),
                expected="a whole checkpoint",
                got="one that was cut off",
                todo="pull with --full, or train again",
            )
        target.write(chunk)
        size_bytes -= len(chunk)
