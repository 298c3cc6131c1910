from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from s2a_edge.run.data import open_data
from s2a_edge.run.data.batches import batches
from s2a_edge.run.data.image_folder import ImageFolder
from s2a_edge.run.data.image_table import ImageTable
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import InputSpec, Manifest, Task
from tests.run.data.samples import manifest, pattern, write_folders


def bundle(task: Task) -> Manifest:
    """The image bundle of the samples with another task."""
    fields = vars(manifest(["x", "y"]))
    return cast(Manifest, SimpleNamespace(**{**fields, "task": task}))


SIZES = bundle(Task("mse", 2, ("width", "height")))


def write_images(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pattern(20, 24, seed=number)).save(folder / name)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images and their widths and heights."""
    write_images(tmp_path, ["b.png", "a.png", "deep/er/c.png"])
    table = "file,width,height\nb.png,1,10\na.png,2,20\ndeep/er/c.png,3,30\n"
    (tmp_path / "labels.csv").write_text(table)
    return tmp_path


def test_samples_are_the_rows_in_their_order(folder: Path) -> None:
    for path in (folder, folder / "labels.csv"):
        data = open_data(path, SIZES)
        assert isinstance(data, ImageTable) and len(data) == 3
        assert data.targets.tolist() == [[1, 10], [2, 20], [3, 30]]
        assert [data.name(i) for i in range(3)] == ["b.png", "a.png", "deep/er/c.png"]
        assert data.check().samples == 3
    (part,) = batches(data, 3, 3, shuffle=False, augment=False)
    folders = write_folders(folder / "folders", {"x": 1, "y": 1})
    Image.open(folder / "a.png").save(folders / "y" / "000.png")
    same = next(iter(batches(ImageFolder(folders, manifest(["x", "y"])), 2, 2, shuffle=False,
                             augment=False)))
    np.testing.assert_array_equal(part.inputs["image"][1], same.inputs["image"][1])


def test_any_csv_will_do_beside_its_images(folder: Path) -> None:
    (folder / "val.csv").write_text("file,width,height\na.png,5,6\n")
    assert open_data(folder / "val.csv", SIZES).targets.tolist() == [[5, 6]]


def test_classes_may_come_from_a_table_too(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\na.png,y\nb.png,x\n")
    data = open_data(folder, bundle(Task("cross_entropy", 2, ("x", "y"))))
    assert data.targets.tolist() == [1, 0]


def test_the_fingerprint_tells_tables_apart(folder: Path) -> None:
    first = open_data(folder, SIZES).fingerprint
    assert open_data(folder, SIZES).fingerprint == first
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("30", "31"))
    assert open_data(folder, SIZES).fingerprint != first


def test_an_image_that_is_listed_but_absent_is_named(folder: Path) -> None:
    with (folder / "labels.csv").open("a") as file:
        file.write(f"gone.png,1,2\n{'x' * 5000}.png,1,2\n")
    with pytest.raises(DataError, match=r"none for 'gone.png' \(line 5\), 'xxx") as error:
        open_data(folder, SIZES)
    assert "labels.csv" in error.value.where


def test_an_image_that_is_listed_twice_is_named(folder: Path) -> None:
    with (folder / "labels.csv").open("a") as file:
        file.write("a.png,1,2\n")
    with pytest.raises(DataError, match=r"line 5: expected every image once, got 'a.png' again"):
        open_data(folder, SIZES)


def test_a_damaged_image_is_found_before_training(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        open_data(folder, SIZES).check()


@pytest.mark.parametrize("task", [Task("bce", 2, ()), Task("mse", 2, ())])
def test_a_folder_without_a_table_is_refused(tmp_path: Path, task: Task) -> None:
    write_folders(tmp_path, {"cat": 1})
    with pytest.raises(DataError, match=r"with a labels\.csv.* got a folder without labels\.csv"):
        open_data(tmp_path, bundle(task))


def test_a_bundle_of_arrays_takes_no_images(folder: Path) -> None:
    tensor = InputSpec("x", "float32", (4,), "tensor")
    arrays: Any = SimpleNamespace(inputs=(tensor,), preprocessing=None, task=SIZES.task)
    with pytest.raises(DataError, match="one image input"):
        open_data(folder, arrays)


def test_a_loss_of_the_graphs_own_takes_arrays_only(folder: Path) -> None:
    task = Task("output", 0, (), "loss")
    with pytest.raises(DataError, match=r"an \.npz file, since the loss is the graph's own"):
        open_data(folder, bundle(task))
    assert dataclasses.asdict(task)["output"] == "loss"
