"""Checkpoints: parameters, optimizer state and position of a run in one safetensors file.

A checkpoint is whole or absent: it is written beside its place, brought to the disk, and renamed.
It is taken between two optimizer steps, so gradients are never part of it.

Format of the file: https://github.com/huggingface/safetensors (8-byte little-endian header size,
JSON header, raw little-endian data). It is written here tensor by tensor, because the library
would first build the whole file in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from s2a_edge.run.device_tensor import Array
from s2a_edge.run.loss_scale import LossScale
from s2a_edge.run.report import EpochRecord
from s2a_edge.run.settings import FitSettings
from s2a_edge.spec import strict_json
from s2a_edge.spec.errors import BundleError, CheckpointError
from s2a_edge.spec.storage import replacing, storage_errors
from s2a_edge.spec.strict_json import Length

FORMAT: Final = "s2a-checkpoint"
FORMAT_VERSION: Final = 2
_KEY = "s2a"  # our entry of the safetensors metadata
MAX_EPOCHS = 1_000_000


@dataclass(frozen=True)
class EpochSums:
    """Sums over the samples of the epoch so far, up to the last complete optimizer step."""

    loss: float = 0.0
    correct: float = 0.0
    samples: int = 0


@dataclass(frozen=True)
class Best:
    """The best epoch so far: by the figure that decides for its task, then by loss."""

    epoch: int
    metric: str
    value: float
    loss: float


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a run stood.

    Attributes:
        bundle_hash: of the bundle's ``SHA256SUMS``.
        data_fingerprint: of the training data.
        samples: of the training data.
        settings: of the run.
        epoch: index of the current epoch, from 0.
        step: optimizer steps done in it.
        global_step: optimizer steps done in all.
        sums: over the current epoch.
        history: one record per finished epoch.
        best: None before the first validation.
        loss_scale: of float16 graphs; None: gradients are not scaled.
        metrics_bytes: length of ``metrics.jsonl`` at that moment; what follows is repeated.
    """

    format: Literal["s2a-checkpoint"]
    format_version: Literal[2]
    bundle_hash: str
    data_fingerprint: str
    samples: int
    settings: FitSettings
    epoch: int
    step: int
    global_step: int
    sums: EpochSums
    history: Annotated[tuple[EpochRecord, ...], Length(0, MAX_EPOCHS)]
    best: Best | None
    metrics_bytes: int
    loss_scale: LossScale | None = None


def write_checkpoint(path: Path, tensors: Mapping[str, Array], info: CheckpointInfo) -> None:
    """Write a checkpoint; the file at ``path`` is the old one until the new one is whole.

    Args:
        path: the file to create or replace.
        tensors: ``param.NAME`` and the optimizer's ``m.NAME``, ``v.NAME``; float32.
        info: where the run stands.

    Raises:
        StorageError: no space, no permission; an existing checkpoint is intact.
    """
    with replacing(path, "to write the checkpoint") as file:
        _write(file, tensors, info)


def _write(file: BinaryIO, tensors: Mapping[str, Array], info: CheckpointInfo) -> None:
    header: dict[str, object] = {
        "__metadata__": {_KEY: json.dumps(strict_json.plain(info), allow_nan=False)}
    }
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned to 8 bytes
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for values in tensors.values():
        if sys.byteorder == "big":
            values = values.byteswap()
        file.write(np.ascontiguousarray(values).tobytes())


def read_checkpoint(path: Path) -> tuple[CheckpointInfo, dict[str, Array]]:
    """Read a checkpoint: position and tensors by name.

    Raises:
        CheckpointError: there is none, it is damaged, or another version wrote it.
        StorageError: it cannot be read.
    """
    if not path.is_file():
        raise _unreadable(path, "a checkpoint", "no such file", "check the path of the run folder")
    with storage_errors(path, "to read the checkpoint"):
        try:
            with safe_open(path, framework="np") as file:
                text = (file.metadata() or {}).get(_KEY, "")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            got = str(error)[:200] or type(error).__name__
            raise _unreadable(path, "a whole checkpoint file", got, _OTHER) from error
    try:
        value = strict_json.parse(text, where=path.name)
        return strict_json.read(CheckpointInfo, value, file=path.name), tensors
    except BundleError as error:
        raise _unreadable(path, error.expected, error.got, _OTHER) from error


_OTHER = "use the other checkpoint of the run (best.safetensors or last.safetensors)"


def _unreadable(path: Path, expected: str, got: str, todo: str) -> CheckpointError:
    return CheckpointError(where=str(path), expected=expected, got=got, todo=todo)
