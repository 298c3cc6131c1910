from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from s2a_edge.run.data.dtypes import F32
from s2a_edge.run.data.image_folder import ImageFolder
from s2a_edge.run.data.preprocessing import (
    center_region,
    check_image_input,
    jpeg_reduction,
    normalization_table,
    resized_size,
    write_normalized,
)
from s2a_edge.spec.errors import BundleError, DataError
from s2a_edge.spec.manifest import InputSpec, Preprocessing
from tests.run.data.samples import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    manifest,
    pattern,
    preprocessing,
)

SIDES = st.integers(1, 5000)


def loaded(path: Path, spec: Preprocessing) -> F32:
    data = ImageFolder(path, manifest(["cat"], spec))
    row = np.full(data.inputs[0].shape, np.nan, dtype=np.float32)
    data.load(0, {"image": row})
    return row


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(500, 375), (375, 500), (224, 224), (90, 61), (300, 300)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_evaluation_equals_resizing_and_then_cropping(
    tmp_path: Path,
    interpolation: Literal["bilinear", "bicubic"],
    sides: tuple[int, int],
    crop_pct: float,
) -> None:
    width, height = sides
    image = Image.fromarray(pattern(height, width))
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / "a.png")
    spec = preprocessing(
        size=(112, 112),
        interpolation=interpolation,
        crop_pct=crop_pct,
        scale=1 / 255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    side = math.floor(112 / crop_pct)
    longer = int(side * max(sides) / min(sides))
    resized = (side, longer) if width <= height else (longer, side)
    resample = getattr(Image.Resampling, interpolation.upper())
    left, top = (round((x - 112) / 2) for x in resized)
    crop = image.resize(resized, resample).crop((left, top, left + 112, top + 112))
    expected = (np.asarray(crop) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    difference = np.abs(loaded(tmp_path, spec) - expected.transpose(2, 0, 1))
    # Pillow rounds to 8 bits between its two passes, and orders them by their cost, which the crop
    # changes; one level is 1/255/0.224 = 0.0175.
    assert difference.max() < 2.1 * 0.0176
    assert difference.mean() < 0.3 * 0.0176


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_layout_channels_and_normalization(
    layout: Literal["NCHW", "NHWC"], channels: Literal["RGB", "BGR"]
) -> None:
    mean, std = (104.0, 117.0, 123.0), (2.0, 3.0, 5.0)
    spec = preprocessing((4, 6), layout, channels, mean=mean, std=std, scale=0.5)
    pixels = pattern(4, 6)
    for source in (pixels, pixels[..., :1], pixels[:, ::-1]):
        ordered = np.broadcast_to(source, pixels.shape)
        ordered = ordered[..., ::-1] if channels == "BGR" else ordered
        expected = (ordered * 0.5 - np.array(mean)) / np.array(std)
        expected = expected.transpose(2, 0, 1) if layout == "NCHW" else expected
        row = np.full(expected.shape, np.nan, dtype=np.float32)
        write_normalized(source, normalization_table(spec), spec, row)
        np.testing.assert_allclose(row, expected, rtol=1e-6)


@given(SIDES, SIDES, st.integers(1, 512), st.integers(1, 512), st.floats(0.5, 1))
def test_the_centre_lies_in_the_middle_of_the_image(
    width: int, height: int, out_height: int, out_width: int, crop_pct: float
) -> None:
    spec = preprocessing((out_height, out_width), crop_pct=crop_pct)
    resized_width, resized_height = resized_size(width, height, spec)
    assert resized_width >= out_width and resized_height >= out_height
    region = center_region(width, height, spec)
    assert region.left >= 0 and region.left + region.width <= width * (1 + 1e-12)
    assert region.top >= 0 and region.top + region.height <= height * (1 + 1e-12)
    # The crop starts at a whole pixel of the resized image, so at most half a one off the middle.
    off_x = region.left + region.width / 2 - width / 2
    assert abs(off_x) <= 0.5 * width / resized_width + 1e-9


def test_a_panorama_is_not_enlarged_whole(tmp_path: Path) -> None:
    # Resized first it would be 112 x 1,120,000 pixels, half a gigabyte.
    (tmp_path / "cat").mkdir()
    Image.fromarray(pattern(2, 20_000)).save(tmp_path / "cat" / "a.png")
    assert np.isfinite(loaded(tmp_path, preprocessing((112, 112)))).all()


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((300, 300), 1), ((1343, 1343), 1), ((1344, 1344), 2), ((4000, 3000), 4), ((9000, 6000), 8)],
)
def test_a_jpeg_is_reduced_where_much_shrinking_is_left(
    sides: tuple[int, int], expected: int
) -> None:
    assert jpeg_reduction(*sides, preprocessing((224, 224))) == expected


def test_arrays_are_no_images() -> None:
    inputs = (InputSpec("tokens", "int64", (16,), "tensor"),)
    with pytest.raises(DataError, match="one that takes tokens"):
        check_image_input(inputs, None)
    with pytest.raises(DataError, match="one that takes tokens"):
        check_image_input(inputs, preprocessing())


def test_an_input_that_its_preprocessing_does_not_fit_is_a_bad_bundle() -> None:
    spec = preprocessing((16, 16))
    with pytest.raises(BundleError, match=r"float32 \[3, 16, 16\]"):
        check_image_input((InputSpec("image", "float32", (16, 16, 3), "image"),), spec)
    with pytest.raises(BundleError, match="got int32"):
        check_image_input((InputSpec("image", "int32", (3, 16, 16), "image"),), spec)
