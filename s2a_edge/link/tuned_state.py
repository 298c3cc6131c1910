"""Checkpoints on a board, and whether a new release can go on from them.

Only the header of a checkpoint is read: ``param.NAME`` and its shape, for each trainable. Format:
https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from s2a_edge.link.releases import Releases
from s2a_edge.spec.errors import CheckpointError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.storage import storage_errors

MAX_HEADER_BYTES = 64 * 2**20
_CHECKPOINTS = ("last.safetensors", "best.safetensors")
_MAX_RUN_BYTES = 2**20
_PARAM = "param."
_SHOWN = 5


def require_matching(releases: Releases, manifest: Manifest) -> None:
    """Refuse a release that the runs of the one in use cannot go on with.

    Args:
        releases: of the board.
        manifest: of the bundle that is to be installed.

    Raises:
        CheckpointError: names the trainables that differ, and the run.
    """
    current = releases.current()
    if current is None:
        return
    wanted = {t.name: tuple(t.shape) for t in manifest.trainables}
    for checkpoint in checkpoints_of(releases.runs, current):
        found = parameter_shapes(checkpoint)
        differing = sorted(n for n in found.keys() | wanted if found.get(n) != wanted.get(n))
        if differing:
            shown = ", ".join(_difference(n, found, wanted) for n in differing[:_SHOWN])
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise CheckpointError(
                where=str(checkpoint),
                expected="the trainables of the new bundle",
                got=f"{shown}{more}",
                todo="pull the run first, then flash with --new-trainables: the run stays as it is",
            )


def checkpoints_of(runs: Path, bundle_hash: str) -> Iterator[Path]:
    """The checkpoints of all runs that were made with a bundle."""
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        if run_bundle(folder) == bundle_hash:
            yield from (folder / name for name in _CHECKPOINTS if (folder / name).is_file())


def run_bundle(folder: Path) -> str | None:
    """Hash of the bundle that a run folder names; None where it is no run folder."""
    try:
        with (folder / "run.json").open("rb") as file:
            value = json.loads(file.read(_MAX_RUN_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    found = value.get("bundle_hash") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def parameter_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the trainables in a checkpoint.

    Raises:
        CheckpointError: it is damaged.
        StorageError: it cannot be read.
    """
    with storage_errors(checkpoint, "to read the checkpoint"), checkpoint.open("rb") as file:
        header, _ = read_header(file, checkpoint)
    return {
        name.removeprefix(_PARAM): tuple(entry["shape"])
        for name, entry in header.items()
        if name.startswith(_PARAM)
    }


def read_header(file: BinaryIO, where: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file, and where its data begins.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        length_bytes = int.from_bytes(file.read(8), "little")
        if length_bytes > MAX_HEADER_BYTES:
            raise ValueError("a header that long")
        header = json.loads(file.read(length_bytes))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sizes = (begin, end, *entry["shape"])
                if not all(type(n) is int and 0 <= n < 2**48 for n in sizes):
                    raise ValueError(name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            where=str(where),
            expected="a whole checkpoint",
            got=f"{type(error).__name__} in its header",
            todo="remove the run, or use its other checkpoint",
        ) from error
    return header, 8 + length_bytes


def _difference(
    name: str, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> str:
    if name not in wanted:
        return f"{name} is not trained any more"
    if name not in found:
        return f"{name} is new"
    return f"{name} was {list(found[name])}, is {list(wanted[name])}"
