from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2a_edge.run.data.augmentation import sample_rng
from s2a_edge.run.data.batches import batches
from s2a_edge.run.data.dtypes import F32
from s2a_edge.run.data.image_folder import ImageFolder
from s2a_edge.run.data.open_data import open_data
from s2a_edge.spec.errors import DataError
from s2a_edge.spec.manifest import InputSpec
from tests.run.data.samples import manifest, pattern, preprocessing, write_folders


def row_of(data: ImageFolder, index: int, rng: np.random.Generator | None = None) -> F32:
    row = np.full((3, 16, 16), np.nan, dtype=np.float32)
    data.load(index, {"image": row}, rng)
    return row


def test_samples_are_ordered_by_label_and_name(tmp_path: Path) -> None:
    write_folders(tmp_path, {"dog": 2, "cat": 1, ".hidden": 1})
    image = Image.fromarray(pattern(8, 8))
    for name in ("z.PNG", "b.Jpeg", ".c.png", "sub/d.webp", ".git/e.png"):
        path = tmp_path / "cat" / name
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    (tmp_path / "cat" / "labels.csv").write_text("a,b\n")
    (tmp_path / "readme.txt").write_text("not a class\n")
    data = ImageFolder(tmp_path, manifest(["dog", "cat", "cow"]))
    names = ["dog/000.png", "dog/001.png"]
    names += ["cat/000.png", "cat/b.Jpeg", "cat/sub/d.webp", "cat/z.PNG"]
    assert [data.name(i) for i in range(len(data))] == names
    assert data.targets.tolist() == [0, 0, 1, 1, 1, 1]
    assert data.targets.dtype == np.int64
    assert data.resident_bytes > sum(len(x) for x in names)


def test_decomposed_folder_names_match_composed_labels(tmp_path: Path) -> None:
    write_folders(tmp_path, {unicodedata.normalize("NFD", "Käfer"): 1})
    data = ImageFolder(tmp_path, manifest(["Baum", unicodedata.normalize("NFC", "Käfer")]))
    assert data.targets.tolist() == [1]


def test_a_bundle_without_label_names_goes_by_order(tmp_path: Path) -> None:
    write_folders(tmp_path, {"b": 1, "a": 2})
    assert ImageFolder(tmp_path, manifest([], classes=2)).targets.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="3 class folders, since the bundle has no label names"):
        ImageFolder(tmp_path, manifest([], classes=3))


def test_unknown_folders_are_listed_with_close_and_missing_labels(tmp_path: Path) -> None:
    write_folders(tmp_path, {"Catt": 1, "dog": 1, "zzz": 1})
    with pytest.raises(DataError) as caught:
        ImageFolder(tmp_path, manifest(["Cat", "dog", "cow"]))
    assert caught.value.got == (
        "unknown 'Catt' (did you mean 'Cat'?), 'zzz'; labels without a folder: 'Cat', 'cow'"
    )


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}").mkdir()
    with pytest.raises(DataError, match="and 22 more") as caught:
        ImageFolder(tmp_path, manifest([f"label {i}" for i in range(1000)]))
    assert len(str(caught.value)) < 1000


def test_no_class_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no sub-folder"):
        ImageFolder(tmp_path, manifest())


def test_a_class_without_images(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 1, "dog": 0})
    (tmp_path / "dog" / "notes.txt").write_text("soon")
    with pytest.raises(DataError, match="dog: expected a class folder with images, got none"):
        ImageFolder(tmp_path, manifest())


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, {"cat": 1})

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="got Permission denied"):
        ImageFolder(tmp_path, manifest())


def test_images_for_a_bundle_that_takes_arrays(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 1})
    inputs = [InputSpec("x", "float32", (4,), "tensor")]
    with pytest.raises(DataError, match="one that takes x"):
        ImageFolder(tmp_path, manifest(inputs=inputs))


def test_the_check_names_all_bad_files_and_reads_no_pixels(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 9})
    data = ImageFolder(tmp_path, manifest())
    for i in (1, 4):
        (tmp_path / "cat" / f"00{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 that cannot be used") as caught:
        data.check()
    assert "001.png" in caught.value.got and "004.png" in caught.value.got
    (tmp_path / "cat" / "001.png").unlink()
    (tmp_path / "cat" / "004.png").unlink()
    data = ImageFolder(tmp_path, manifest())
    path = tmp_path / "cat" / "002.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert data.check().samples == 7, "a header says nothing of missing pixels"
    (tmp_path / "cat" / "003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"003\.png"):
        data.check()


def test_the_check_finds_the_image_that_takes_most(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 2, "dog": 1}, side=30)
    Image.fromarray(pattern(400, 600)).save(tmp_path / "dog" / "big.png")
    # Six times as many pixels, decoded at an eighth.
    Image.fromarray(pattern(1000, 1440)).save(tmp_path / "dog" / "huge.jpg")
    check = ImageFolder(tmp_path, manifest()).check()
    assert (check.samples, check.largest) == (5, "dog/big.png")
    assert 4 * 400 * 600 <= check.decode_bytes <= 4 * 400 * 600 + 2**21


def test_a_file_that_breaks_while_training_is_named_in_its_turn(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 3})
    data = ImageFolder(tmp_path, manifest())
    data.check()
    (tmp_path / "cat" / "002.png").unlink()
    parts = batches(data, 2, 2, shuffle=False)
    assert next(parts).samples == 2
    with pytest.raises(DataError, match=r"cat/002\.png.*No such file"):
        next(parts)


def test_an_augmented_view_depends_on_its_stream_alone(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 2}, side=40)
    data = ImageFolder(tmp_path, manifest())
    first = row_of(data, 1, sample_rng(5, 3, 1))
    row_of(data, 0, sample_rng(5, 3, 0))
    np.testing.assert_array_equal(row_of(data, 1, sample_rng(5, 3, 1)), first)
    assert (row_of(data, 1, sample_rng(5, 4, 1)) != first).any()
    assert (row_of(data, 1) != first).any()


def test_without_a_stream_a_square_image_of_the_right_size_comes_through(tmp_path: Path) -> None:
    pixels = pattern(16, 16)
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat" / "a.png")
    data = ImageFolder(tmp_path, manifest(spec=preprocessing((16, 16))))
    np.testing.assert_array_equal(row_of(data, 0), pixels.transpose(2, 0, 1))


def test_epochs_of_images_resume_bit_identically(tmp_path: Path) -> None:
    data = ImageFolder(write_folders(tmp_path, {"cat": 5, "dog": 6}), manifest())

    def rows(micro: int, start: int, prefetch: bool) -> list[bytes]:
        parts = batches(data, 4, micro, 1, 11, start, prefetch=prefetch)
        return [row.tobytes() for x in parts for row in x.inputs["image"][: x.samples]]

    whole = rows(4, 0, False)
    assert len(set(whole)) == 11
    assert rows(3, 1, True) == whole[4:]


def test_the_fingerprint_tells_data_sets_apart(tmp_path: Path) -> None:
    write_folders(tmp_path / "a", {"cat": 2, "dog": 1})
    write_folders(tmp_path / "b", {"cat": 2, "dog": 1})
    labels = manifest()
    first = ImageFolder(tmp_path / "a", labels).fingerprint
    assert ImageFolder(tmp_path / "b", labels).fingerprint == first
    (tmp_path / "b" / "dog" / "000.png").rename(tmp_path / "b" / "dog" / "x.png")
    assert ImageFolder(tmp_path / "b", labels).fingerprint != first
    assert ImageFolder(tmp_path / "a", manifest(["dog", "cat"])).fingerprint != first


def test_open_data_tells_what_it_takes(tmp_path: Path) -> None:
    write_folders(tmp_path / "data", {"cat": 1})
    assert isinstance(open_data(tmp_path / "data", manifest()), ImageFolder)
    assert len(open_data(str(tmp_path / "data"), manifest())) == 1
    (tmp_path / "data.tsv").write_text("x")
    with pytest.raises(DataError, match="got another kind of file"):
        open_data(tmp_path / "data.tsv", manifest())
    for missing in ("nowhere", "nowhere.npz"):
        with pytest.raises(DataError, match="got nothing there"):
            open_data(tmp_path / missing, manifest())
