"""Which micro-batch follows when memory gets short, and how a run remembers it.

A run that stepped down says so in ``step_down.json``: resumed without ``--micro-batch`` it goes on
with the smaller one, however much memory there is by then. It steps up again only when it is
resumed with a larger ``--micro-batch``, or the file is removed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from s2a_edge.run.run_folder import STEP_DOWN_NAME
from s2a_edge.spec import strict_json
from s2a_edge.spec.errors import BundleError, CheckpointError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import Requirement, Setting, micro_batches, requirement
from s2a_edge.spec.storage import replacing, storage_errors


@dataclass(frozen=True)
class StepDown:
    """One step down.

    Attributes:
        created: when, in UTC.
        micro_batch: what the run goes on with.
        before: what it ran with.
        global_step: optimizer steps done by then.
        reason: what happened, in one line.
    """

    created: str
    micro_batch: int
    before: int
    global_step: int
    reason: str

    @classmethod
    def now(cls, before: int, micro_batch: int, global_step: int, reason: str) -> StepDown:
        """One that happens now."""
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(created, micro_batch, before, global_step, reason)


def smaller(
    manifest: Manifest, needed: Requirement, missing_bytes: int, setting: Setting
) -> Requirement | None:
    """The requirement to step down to.

    A loss that the graph computes itself may compare samples with one another: its micro-batch is
    part of the mathematics, and there is nothing to step down to.

    Args:
        manifest: of the bundle.
        needed: of the micro-batch that does not fit.
        missing_bytes: what must be given back; 0 where that is not known.
        setting: what requirements depend on here.

    Returns:
        Of the smaller ones the largest that gives back enough, else the smallest; None where
        there is no smaller one.
    """
    if manifest.task.loss == "output":
        return None
    wanted_bytes = needed.total_bytes - max(1, missing_bytes)
    found: Requirement | None = None
    for batch in micro_batches(manifest):
        if batch < needed.micro_batch:
            found = requirement(manifest, micro_batch=batch, setting=setting)
            if found.total_bytes <= wanted_bytes:
                break
    return found


def remember(out: Path, step_down: StepDown) -> None:
    """Write down that a run stepped down.

    Raises:
        StorageError: the disk refuses.
    """
    text = json.dumps(strict_json.plain(step_down), indent=1) + "\n"
    with replacing(out / STEP_DOWN_NAME, "to write step_down.json") as file:
        file.write(text.encode())


def remembered(out: Path) -> StepDown | None:
    """How far a run stepped down; None if it did not.

    Raises:
        CheckpointError: the file is damaged.
        StorageError: it cannot be read.
    """
    file = out / STEP_DOWN_NAME
    if not file.is_file():
        return None
    with storage_errors(file, "to read step_down.json"):
        text = file.read_text(encoding="utf-8", errors="replace")
    try:
        value = strict_json.parse(text, where=str(file))
        return strict_json.read(StepDown, value, file=str(file))
    except BundleError as error:
        raise CheckpointError(
            where=error.where,
            expected=error.expected,
            got=error.got,
            todo="remove the file, and resume with --micro-batch",
        ) from error


def carried_over(out: Path, micro_batch: int, *, asked: bool) -> int | None:
    """The smaller micro-batch with which a resumed run goes on; None: with the one it has now.

    Args:
        out: folder of the run.
        micro_batch: the one it has now.
        asked: the user chose that: it stays, and a step down is forgotten.

    Raises:
        CheckpointError: the file is damaged.
        StorageError: it cannot be read or removed.
    """
    before = remembered(out)
    if before is None or micro_batch <= before.micro_batch:
        return None
    if asked:
        forget(out)
        return None
    return before.micro_batch


def forget(out: Path) -> None:
    """The user chose a larger micro-batch again.

    Raises:
        StorageError: the file cannot be removed.
    """
    with storage_errors(out / STEP_DOWN_NAME, "to remove step_down.json"):
        (out / STEP_DOWN_NAME).unlink(missing_ok=True)
