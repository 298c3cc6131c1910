"""The folder of a run: ``run.json``, ``metrics.jsonl``, ``last.safetensors``, ``best.safetensors``.

``run.json`` says what was run and never changes; ``metrics.jsonl`` has one JSON object a line, per
step and epoch; checkpoints are replaced as a whole. One process at a time works in a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from s2a_edge.run.settings import FitSettings
from s2a_edge.spec import strict_json
from s2a_edge.spec.errors import BundleError, CheckpointError, UsageError
from s2a_edge.spec.storage import replacing, storage_errors
from s2a_edge.spec.strict_json import Length

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
LAST_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"
STEP_DOWN_NAME = "step_down.json"
FORMAT: Final = "s2a-run"
FORMAT_VERSION: Final = 1
MAX_RUN_BYTES = 2**24  # one weight a class makes it long

Which = Literal["best", "last"]


@dataclass(frozen=True)
class RunRecord:
    """What was run.

    Attributes:
        bundle: absolute path of the bundle, folder or ``.s2a``.
        bundle_hash: of its ``SHA256SUMS``.
        data: path of the training data.
        val: path of the validation data.
        effective_batch: samples per optimizer step.
        settings: everything else that decides the result.
        versions: of s2a-edge, onnxruntime, numpy and Python.
    """

    format: Literal["s2a-run"]
    format_version: Literal[1]
    created: str
    bundle: str
    bundle_hash: str
    data: str
    val: str | None
    effective_batch: int
    settings: FitSettings
    versions: Annotated[dict[str, str], Length(0, 64)]


class RunFolder:
    """An exclusively held run folder; close it, or use it in a ``with`` block.

    Args:
        path: the folder; made if it is missing.

    Raises:
        CheckpointError: another process trains in it.
        StorageError: it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path, "to make the run folder"):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise CheckpointError(
                where=str(path),
                expected="a run folder that nobody works in",
                got="another process that trains there",
                todo="wait for it, or give another --out",
            ) from error
        self.last, self.best = path / LAST_NAME, path / BEST_NAME
        with storage_errors(path, "to use the run folder"):
            self._remove_halves()
            self._metrics = (path / METRICS_NAME).open("ab")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder. Metrics that were not flushed are lost if the disk is full."""
        try:
            with storage_errors(self.path / METRICS_NAME, "to write the metrics"):
                self._metrics.close()
        finally:
            os.close(self._lock)

    def begin(self, record: RunRecord) -> None:
        """Write ``run.json`` and start the metrics anew."""
        text = json.dumps(strict_json.plain(record), indent=1) + "\n"
        with replacing(self.path / RUN_NAME, "to write run.json") as file:
            file.write(text.encode())
        self.cut_metrics(0)

    def add_metrics(self, record: dict[str, object]) -> None:
        """Append one line to the metrics; it is on the disk after :meth:`sync_metrics`."""
        with storage_errors(self.path / METRICS_NAME, "to write the metrics"):
            self._metrics.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def sync_metrics(self) -> int:
        """Bring the metrics to the disk and return their length in bytes."""
        with storage_errors(self.path / METRICS_NAME, "to write the metrics"):
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            return self._metrics.tell()

    def cut_metrics(self, length_bytes: int) -> None:
        """Drop what was appended after a checkpoint that had ``length_bytes`` of metrics."""
        with storage_errors(self.path / METRICS_NAME, "to write the metrics"):
            self._metrics.flush()
            if self._metrics.seek(0, os.SEEK_END) > length_bytes:
                self._metrics.truncate(length_bytes)
                self._metrics.seek(0, os.SEEK_END)

    def _remove_halves(self) -> None:
        """Remove what a killed process left of files that it was writing."""
        for name in (LAST_NAME, BEST_NAME, RUN_NAME, STEP_DOWN_NAME):
            for half in self.path.glob(f".{name}.*"):
                half.unlink(missing_ok=True)


def read_run(path: Path) -> RunRecord:
    """What was run in a run folder.

    Raises:
        CheckpointError: it is no run folder, or ``run.json`` is damaged.
        StorageError: it cannot be read.
    """
    file = path / RUN_NAME
    if not file.is_file():
        raise CheckpointError(
            where=str(path),
            expected="a run folder, as `s2a-edge train` makes it",
            got=f"no {RUN_NAME}",
            todo="check the path",
        )
    with storage_errors(file, "to read run.json"), file.open("rb") as opened:
        text = opened.read(MAX_RUN_BYTES).decode("utf-8", "replace")
    try:
        return strict_json.read(RunRecord, strict_json.parse(text, where=str(file)), file=str(file))
    except BundleError as error:
        raise CheckpointError(
            where=error.where,
            expected=error.expected,
            got=error.got,
            todo="the run folder is damaged or of another version: train again",
        ) from error


def checkpoint_path(run: Path, which: Which | None = None) -> Path:
    """A run's checkpoint file: the wanted one, or the best, or else the last.

    Raises:
        CheckpointError: the run has no such checkpoint.
    """
    names = {"best": [BEST_NAME], "last": [LAST_NAME], None: [BEST_NAME, LAST_NAME]}[which]
    for name in names:
        if (run / name).is_file():
            return run / name
    raise CheckpointError(
        where=str(run),
        expected=" or ".join(names),
        got="no such checkpoint",
        todo="best needs validation data (--val); use the last, or train again"
        if which == "best"
        else "train first",
    )


def refuse_existing(path: Path) -> None:
    """Raise UsageError if ``path`` already holds a run: nothing is overwritten by accident."""
    if (path / LAST_NAME).exists():
        raise UsageError(
            where=f"--out {path}",
            expected="a new run folder",
            got="one that holds a run",
            todo="continue it with --resume, or give another --out",
        )
