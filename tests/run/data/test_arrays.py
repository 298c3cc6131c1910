from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s2a_edge.run.data import arrays
from s2a_edge.run.data.arrays import ArrayDataSet
from s2a_edge.run.data.batches import batches
from s2a_edge.run.data.open_data import open_data
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import InputSpec, Task
from tests.run.data.samples import manifest

INPUTS = (
    InputSpec("tokens", "int64", (5,), "tensor"),
    InputSpec("length", "int32", (), "tensor"),
    InputSpec("x", "float32", (2, 3), "tensor"),
)
BUNDLE = manifest(["a", "b", "c"], inputs=INPUTS)
SAMPLES = 7


def good() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 1000, (SAMPLES, 5)),
        "length": rng.integers(0, 5, SAMPLES, dtype=np.int32),
        "x": rng.standard_normal((SAMPLES, 2, 3)).astype(np.float32),
        "labels": np.arange(SAMPLES, dtype=np.uint8) % 3,
    }


def saved(tmp_path: Path, save: Callable[..., None] = np.savez, **changes: Any) -> Path:
    path = tmp_path / "data.npz"
    save(path, **{k: v for k, v in {**good(), **changes}.items() if v is not None})
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_those_that_were_saved(tmp_path: Path, save: Callable[..., None]) -> None:
    data = open_data(saved(tmp_path, save), BUNDLE)
    expected = good()
    assert len(data) == SAMPLES and data.targets.dtype == np.int64
    seen = 0
    for part in batches(data, 4, 3, epoch=2, seed=1):
        for name in ("tokens", "length", "x"):
            rows = part.inputs[name][: part.samples]
            np.testing.assert_array_equal(rows, expected[name][part.indices])
            assert rows.dtype == expected[name].dtype
        np.testing.assert_array_equal(part.targets, part.indices % 3)
        seen += part.samples
    assert seen == SAMPLES
    assert data.name(3) == "data.npz[3]"
    assert data.check().decode_bytes == 0


def test_stored_arrays_are_not_held(tmp_path: Path) -> None:
    assert ArrayDataSet(saved(tmp_path), BUNDLE).resident_bytes == SAMPLES * 8
    packed = ArrayDataSet(saved(tmp_path, np.savez_compressed), BUNDLE)
    assert packed.resident_bytes == SAMPLES * (8 + 40 + 4 + 24)


def test_large_compressed_arrays_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, np.savez_compressed)
    monkeypatch.setattr(arrays, "COMPRESSED_LIMIT_BYTES", SAMPLES * 68)
    assert len(ArrayDataSet(path, BUNDLE)) == SAMPLES
    monkeypatch.setattr(arrays, "COMPRESSED_LIMIT_BYTES", SAMPLES * 68 - 1)
    with pytest.raises(DataError, match=r"numpy\.savez instead of savez_compressed"):
        ArrayDataSet(path, BUNDLE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "got no x; it holds labels, length, tokens"),
        ({"labels": None}, "got no labels"),
        ({"x": np.zeros((SAMPLES, 2, 3))}, r"x: expected float32 \[7, 2, 3\], got float64"),
        ({"x": np.zeros((SAMPLES, 3, 2), np.float32)}, r"got float32 \[7, 3, 2\]"),
        ({"x": np.zeros((SAMPLES - 1, 2, 3), np.float32)}, r"got float32 \[6, 2, 3\]"),
        ({"x": np.zeros((SAMPLES, 2, 3), ">f4")}, "got >f4"),
        ({"x": np.asfortranarray(np.zeros((SAMPLES, 2, 3), np.float32))}, "Fortran order"),
        ({"x": np.array([None] * SAMPLES)}, "got Python objects"),
        ({"labels": np.zeros(SAMPLES)}, r"labels: expected integers \[samples\], got float64"),
        ({"labels": np.zeros((SAMPLES, 1), int)}, r"got int64 \[7, 1\]"),
        ({"labels": np.array([0, 1, 3, 0, 3, 0, 0])}, "got 3 in row 2, 2 such rows"),
        ({"labels": np.array([0, -1, 0, 0, 0, 0, 0])}, "got -1 in row 1"),
        ({"labels": np.zeros(0, int)}, "got 0 samples"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_that_do_not_suit_the_bundle(
    tmp_path: Path, save: Callable[..., None], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ArrayDataSet(saved(tmp_path, save, **changes), BUNDLE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_way_of_cutting_the_file_is_an_error_of_ours(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    path = saved(tmp_path, save)
    raw = path.read_bytes()
    for length in range(0, len(raw), max(1, len(raw) // 60)):
        path.write_bytes(raw[:length])
        with pytest.raises(DataError, match=r"data\.npz"):
            ArrayDataSet(path, BUNDLE)


def test_every_flipped_byte_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    path = saved(tmp_path)
    raw = path.read_bytes()
    row = {x.name: np.zeros(x.shape, x.dtype) for x in INPUTS}
    for place in range(0, len(raw), 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :])
        try:
            data = ArrayDataSet(path, BUNDLE)
            data.load(SAMPLES - 1, row)
        except DataError as error:
            assert "data.npz" in error.where


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {x: archive.read(x) for x in archive.namelist()}
    members["x.npy"] = members["x.npy"].replace(b"(7, 2, 3), ", b"(9, 2, 3), ")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="not what it declares"):
        ArrayDataSet(path, BUNDLE)


def test_a_file_that_shrinks_while_it_is_used(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = ArrayDataSet(path, BUNDLE)
    path.write_bytes(path.read_bytes()[:400])
    row = {x.name: np.zeros(x.shape, x.dtype) for x in INPUTS}
    with pytest.raises(DataError, match="ends inside row 6"):
        data.load(6, row)
    path.unlink()
    with pytest.raises(DataError, match="row 0: No such file"):
        data.load(0, row)


def test_the_fingerprint_tells_data_sets_apart(tmp_path: Path) -> None:
    first = ArrayDataSet(saved(tmp_path), BUNDLE).fingerprint
    assert ArrayDataSet(saved(tmp_path), BUNDLE).fingerprint == first
    changed = saved(tmp_path, x=np.zeros((SAMPLES, 2, 3), np.float32))
    assert ArrayDataSet(changed, BUNDLE).fingerprint != first


def with_task(task: Task) -> Any:
    fields = {**vars(BUNDLE), "task": task}
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("task", "name", "values", "dtype"),
    [
        (Task("bce", 2, ()), "labels", np.eye(SAMPLES, 2, dtype=np.bool_), np.uint8),
        (Task("bce", 2, ()), "labels", np.eye(SAMPLES, 2, dtype=np.int64), np.uint8),
        (Task("bce", 2, ()), "labels", np.full((SAMPLES, 2), 0.25), np.float32),
        (Task("mse", 2, ()), "targets", np.arange(2.0 * SAMPLES).reshape(-1, 2), np.float32),
        (Task("l1", 1, ()), "targets", np.arange(SAMPLES).reshape(-1, 1), np.float32),
    ],
)
def test_targets_by_task(
    tmp_path: Path, task: Task, name: str, values: np.ndarray, dtype: type
) -> None:
    arrays: dict[str, Any] = {"labels": None, name: values}
    data = open_data(saved(tmp_path, **arrays), with_task(task))
    assert data.targets.dtype == dtype
    np.testing.assert_array_equal(data.targets, values)


def test_one_output_may_be_a_plain_list_of_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path, labels=None, targets=np.arange(float(SAMPLES)))
    assert open_data(path, with_task(Task("mse", 1, ()))).targets.shape == (SAMPLES, 1)


def test_a_loss_of_the_graphs_own_needs_no_targets(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path, labels=None), with_task(Task("output", 0, (), "loss")))
    assert len(data) == SAMPLES and data.targets.shape == (SAMPLES, 0)
    with pytest.raises(DataError, match="x: expected float32"):
        open_data(
            saved(tmp_path, labels=None, x=np.zeros((3, 2, 3), np.float32)),
            with_task(Task("output", 0, (), "loss")),
        )
    with pytest.raises(DataError, match="one row per sample"):
        open_data(
            saved(tmp_path, labels=None, tokens=np.int64(3)),
            with_task(Task("output", 0, (), "loss")),
        )


@pytest.mark.parametrize(
    ("task", "arrays", "message"),
    [
        (Task("bce", 2, ()), {"labels": np.zeros(SAMPLES, np.int64)}, r"numbers \[samples, 2\]"),
        (Task("bce", 2, ()), {"labels": np.zeros((SAMPLES, 3))}, r"got float64 \[7, 3\]"),
        (Task("bce", 2, ()), {"labels": np.full((SAMPLES, 2), 2)}, "from 0 to 1, got 2 in row 0"),
        (Task("bce", 2, ()), {"labels": np.full((SAMPLES, 2), np.nan)}, "got nan in row 0"),
        (Task("mse", 2, ()), {"labels": np.zeros((SAMPLES, 2))}, "no targets; it holds"),
        (Task("mse", 2, ()), {"targets": np.zeros((SAMPLES, 1))}, r"got float64 \[7, 1\]"),
        (Task("mse", 2, ()), {"targets": np.zeros(SAMPLES)}, r"got float64 \[7\]"),
        (Task("mse", 1, ()), {"targets": np.array(["1"] * SAMPLES)}, "got <U1"),
        (Task("mse", 1, ()), {"targets": np.array([0, 1, np.nan, 3, 4, 5, 6])}, "nan in row 2"),
        (Task("l1", 1, ()), {"targets": np.full(SAMPLES, 1e39)}, "finite numbers, got 1e"),
        (Task("l1", 1, ()), {"targets": np.zeros((SAMPLES - 1, 1))}, r"tokens: .* \[6, 5\]"),
    ],
)
def test_targets_that_do_not_suit_the_task_are_refused(
    tmp_path: Path, task: Task, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(saved(tmp_path, **{"labels": None, **arrays}), with_task(task))
