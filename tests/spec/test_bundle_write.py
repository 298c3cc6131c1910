from __future__ import annotations

import dataclasses
import gc
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.bundle_write import write_bundle, write_weights
from s2a_edge.spec.errors import BundleError, InternalError, StorageError, UsageError
from tests.spec import bundle_samples

DTYPES = ["float32", "float16", "float64", "int64", "int8", "uint8", "bool"]


def test_the_tar_is_the_same_each_time_and_plain(tmp_path: Path) -> None:
    first = bundle_samples.write_sample(tmp_path / "a.s2a").read_bytes()
    assert bundle_samples.write_sample(tmp_path / "b.s2a").read_bytes() == first
    with tarfile.open(tmp_path / "a.s2a", "r:") as tar:
        members = tar.getmembers()
    names = [m.name for m in members]
    assert names[:2] == ["manifest.json", "SHA256SUMS"]
    assert names[-1] == "weights.bin"
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    assert all(m.offset_data % 512 == 0 for m in members)


@given(
    st.lists(
        st.sampled_from(
            ["float32", "float16", "float64", "int64", "int8", "uint8", "bool"]
        ).flatmap(
            lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0))
        ),
        max_size=4,
    )
)
def test_weights_round_trip(arrays: list[npt.NDArray[Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "weights.bin"
        entries = write_weights(path, ((f"w{i}", array.T) for i, array in enumerate(arrays)))
        content = path.read_bytes()
    assert [e.offset % 4096 for e in entries] == [0] * len(arrays)
    for entry, array in zip(entries, arrays, strict=True):
        raw = content[entry.offset : entry.offset + entry.size_bytes]
        got = np.frombuffer(raw, entry.dtype).reshape(entry.shape)
        np.testing.assert_array_equal(got, array.T)


def test_weights_refuse_repeated_names_and_odd_dtypes(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    with pytest.raises(BundleError, match="weight a"):
        write_weights(tmp_path / "w", [("a", one), ("a", one)])
    with pytest.raises(BundleError, match="complex64"):
        write_weights(tmp_path / "w", [("a", one.astype(np.complex64))])
    assert list(tmp_path.iterdir()) == []


def test_weights_are_taken_one_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[object]] = []

    def tensors() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for i in range(3):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            array = np.full(10_000, i, np.float32)
            alive.append(weakref.ref(array))
            yield f"w{i}", array
            del array

    assert len(write_weights(tmp_path / "w", tensors())) == 3


def test_staging_must_hold_exactly_the_files(tmp_path: Path) -> None:
    staging = bundle_samples.stage(tmp_path / "staging")
    (staging / "rehearsal.log").write_text("left over")
    with pytest.raises(InternalError, match=r"rehearsal\.log"):
        write_bundle(staging, bundle_samples.manifest(), tmp_path / "b.s2a")


@pytest.mark.parametrize("name", ["b", "b.s2a"])
def test_writing_replaces_a_bundle_and_nothing_else(tmp_path: Path, name: str) -> None:
    out = bundle_samples.write_sample(tmp_path / name)
    newer = dataclasses.replace(bundle_samples.manifest(), tool_version="0.2.0")
    write_bundle(bundle_samples.stage(tmp_path / "staging"), newer, out)
    with Bundle.open(out) as bundle:
        assert bundle.manifest.tool_version == "0.2.0"
    shutil.rmtree(tmp_path / "staging", ignore_errors=True)
    assert {p.name.split(".unpacked")[0] for p in tmp_path.iterdir()} == {name}


def test_other_things_at_out_are_refused(tmp_path: Path) -> None:
    staging = bundle_samples.stage(tmp_path / "staging")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    (tmp_path / "model.onnx").write_text("precious")
    (tmp_path / "notes.s2a").write_text("precious")
    for name in ("photos", "model.onnx", "notes.s2a"):
        with pytest.raises(UsageError, match="choose another --out"):
            write_bundle(staging, bundle_samples.manifest(), tmp_path / name)
    assert (tmp_path / "photos" / "cat.jpg").exists()
    (tmp_path / "empty").mkdir()
    write_bundle(staging, bundle_samples.manifest(), tmp_path / "empty")
    assert (tmp_path / "empty" / "manifest.json").exists()


def test_a_folder_on_another_file_system_is_copied(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    with tempfile.TemporaryDirectory(dir=other) as name:
        staging = bundle_samples.stage(Path(name) / "staging")
        out = write_bundle(staging, bundle_samples.manifest(), tmp_path / "b")
    with Bundle.open(out) as bundle:
        assert bundle.path.stat().st_mode & 0o777 == 0o755
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_missing_parent_is_a_storage_error(tmp_path: Path) -> None:
    staging = bundle_samples.stage(tmp_path / "staging")
    for name in ("b", "b.s2a"):
        with pytest.raises(StorageError):
            write_bundle(staging, bundle_samples.manifest(), tmp_path / "no" / name)
