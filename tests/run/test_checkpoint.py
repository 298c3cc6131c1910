from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from s2a_edge.run.checkpoint import (
    Best,
    CheckpointInfo,
    EpochSums,
    read_checkpoint,
    write_checkpoint,
)
from s2a_edge.run.device_tensor import Array
from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.report import EpochRecord
from s2a_edge.run.settings import FitSettings
from s2a_edge.spec.errors import CheckpointError

INFO = CheckpointInfo(
    format="s2a-checkpoint",
    format_version=2,
    bundle_hash="ab" * 32,
    data_fingerprint="cd" * 32,
    samples=38,
    settings=FitSettings(3, 0.1, 0.5, 0.0, True, 2**40, Hyperparameters(max_norm=1.0)),
    epoch=1,
    step=4,
    global_step=14,
    sums=EpochSums(0.1 + 0.2, 8.75, 16),
    history=(
        EpochRecord(1, 1 / 3, None, None, {}),
        EpochRecord(2, 1e-30, 1.0, 2.5, {"top1": 0.25}),
    ),
    best=Best(2, "top1", 0.25, 2.5),
    metrics_bytes=1234,
)


def tensors() -> dict[str, Array]:
    made = {}
    for name, shape in {"param.w": (3, 2), "m.w": (3, 2), "v.w": (3, 2), "param.s": ()}.items():
        drawn = np.random.default_rng(len(name)).standard_normal(shape)
        made[name] = np.asarray(drawn, np.float32)
    return made


def test_everything_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, tensors(), INFO)
    info, values = read_checkpoint(path)
    assert info == INFO
    assert {k: v.tobytes() for k, v in values.items()} == {
        k: t.tobytes() for k, t in tensors().items()
    }


def test_the_file_is_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, tensors(), dataclasses.replace(INFO, history=(), best=None))
    loaded = load_file(path)
    for name, tensor in tensors().items():
        assert np.array_equal(loaded[name], tensor)


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    for _ in range(2):
        write_checkpoint(tmp_path / "last.safetensors", tensors(), INFO)
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, tensors(), INFO)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"last\.safetensors: expected a whole checkpoint"):
        read_checkpoint(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "last.safetensors")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format_version": 2', '"format_version": 1'),
        ('"format": "s2a-checkpoint"', '"format": "something-else"'),
        ('"global_step": 14', '"global_step": "14"'),
        ('"best"', '"rest"'),
        ('"samples": 38, ', ""),
    ],
)
def test_metadata_of_another_kind_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, tensors(), INFO)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    text = header["__metadata__"]["s2a"]
    assert old in text
    header["__metadata__"]["s2a"] = text.replace(old, new, 1)
    packed = json.dumps(header).encode()
    path.write_bytes(len(packed).to_bytes(8, "little") + packed + content[8 + size :])
    with pytest.raises(CheckpointError, match="use the other checkpoint"):
        read_checkpoint(path)


def test_a_plain_safetensors_file_is_no_checkpoint(toy: Path) -> None:
    with pytest.raises(CheckpointError):
        read_checkpoint(toy / "adapters.safetensors")
