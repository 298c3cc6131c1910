from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2a_edge.run.data.decoding import ImageHeader, Region, read_header, read_region
from s2a_edge.run.data.dtypes import U8
from s2a_edge.spec.errors import DataError
from tests.run.data.samples import pattern

BICUBIC = Image.Resampling.BICUBIC
HEIGHT, WIDTH = 24, 40


def whole(width: int, height: int) -> Region:
    return Region(0, 0, width, height)


def full_size(width: int, height: int) -> int:
    return 1


def decoded(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> U8:
    return read_region(path, size, BICUBIC, whole, full_size)


def saved(tmp_path: Path, name: str, image: Image.Image, **options: Any) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    "name", ["a.png", "a.bmp", "a.tiff", "a.TIF", "a.webp", "a.jpg", "a.jpeg", "A.JPG"]
)
def test_formats_give_the_pixels_that_pillow_gives(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name, Image.fromarray(pattern(HEIGHT, WIDTH)))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decoded(path), expected)


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "CMYK", "1"])
def test_modes_become_gray_or_rgb_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pattern(HEIGHT, WIDTH))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pattern(HEIGHT, WIDTH, seed=5)[..., 0]))
    path = saved(tmp_path, "a.tiff" if mode == "CMYK" else "a.png", image.convert(mode))
    with Image.open(path) as stored:
        assert stored.mode == mode
        expected = np.asarray(stored.convert("RGB"))
    pixels = decoded(path)
    assert pixels.shape[-1] == (1 if mode in ("L", "LA", "1") else 3)
    np.testing.assert_array_equal(np.broadcast_to(pixels, expected.shape), expected)


def test_16_bit_gray_keeps_its_upper_byte(tmp_path: Path) -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 68
    for name in ("a.png", "a.tiff"):
        pixels = decoded(saved(tmp_path, name, Image.fromarray(values)))
        np.testing.assert_array_equal(pixels[..., 0], values >> 8)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    gray = [Image.fromarray(np.full((HEIGHT, WIDTH), v, dtype=np.uint8)) for v in (50, 200)]
    path = saved(tmp_path, "a.gif", gray[0], save_all=True, append_images=gray[1:])
    assert set(decoded(path).ravel().tolist()) == {50}


def test_a_palette_with_transparency_warns_nobody(tmp_path: Path) -> None:
    image = Image.fromarray(pattern(HEIGHT, WIDTH)).quantize(8)
    path = saved(tmp_path, "a.png", image, transparency=bytes([0, 128, 255]))
    assert decoded(path).shape == (HEIGHT, WIDTH, 3)  # warnings are errors in this suite


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    upright = pattern(HEIGHT, WIDTH)
    undo: dict[int, Callable[[U8], U8]] = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if name == "a.jpg" else {}
    options |= {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, name, stored, exif=exif, **options)
    region = Region(4, 2, 20, 10)
    pixels = read_region(path, (10, 20), BICUBIC, lambda w, h: region, full_size)
    # A JPEG's discrete cosines round twice: a few levels.
    np.testing.assert_allclose(pixels.astype(int), upright[2:12, 4:24], atol=4)


def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    image = Image.fromarray(pattern(HEIGHT, WIDTH))
    path = saved(tmp_path, "a.jpg", image, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert decoded(path).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("subsampling", "mean", "largest"), [(0, 0.6, 4), (2, 1.5, 12)])
def test_a_reduced_jpeg_stays_close_to_the_full_one(
    tmp_path: Path, subsampling: int, mean: float, largest: int
) -> None:
    # Random saturated colours: chroma at half resolution makes most of the second difference.
    # Measured 0.47 and 2, 1.30 and 10 levels (Pillow 13); a region one pixel off makes 8.5 and 35.
    image = Image.fromarray(pattern(600, 800))
    path = saved(tmp_path, "a.jpg", image, quality=92, subsampling=subsampling)
    region = Region(50.5, 20.25, 400, 400)
    small = [
        read_region(path, (64, 64), BICUBIC, lambda w, h: region, lambda w, h, x=x: x)  # type: ignore[misc]  # a default that binds the loop's value
        for x in (1, 2)
    ]
    difference = np.abs(small[0].astype(int) - small[1])
    assert 0 < difference.mean() < mean and difference.max() <= largest


def broken_files(tmp_path: Path) -> dict[str, Path]:
    image = Image.fromarray(pattern(64, 64))
    files = {"missing.png": b"", "empty.jpg": b"", "text.png": b"not an image at all\n" * 9}
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.gif", "cut.tiff", "cut.bmp"):
        raw = saved(tmp_path, name, image).read_bytes()
        files[name] = raw[: len(raw) // 2]
    whole_png = saved(tmp_path, "flipped.png", image).read_bytes()
    for name, place in (("flipped.png", len(whole_png) // 2), ("header.png", 20)):
        flipped = bytearray(whole_png)
        flipped[place] ^= 0xFF
        files[name] = bytes(flipped)
    paths = {}
    for name, content in files.items():
        paths[name] = tmp_path / name
        paths[name].write_bytes(content)
    paths["missing.png"].unlink()
    return paths


@pytest.mark.parametrize(
    "name",
    [
        *("missing.png", "empty.jpg", "text.png", "cut.jpg", "cut.png", "cut.webp", "cut.gif"),
        *("cut.tiff", "cut.bmp", "flipped.png", "header.png"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    path = broken_files(tmp_path)[name]
    with pytest.raises(DataError) as caught:
        decoded(path)
    assert caught.value.where == str(path)
    assert caught.value.got and str(tmp_path) not in caught.value.got


def test_every_way_of_cutting_a_file_is_an_error_of_ours(tmp_path: Path) -> None:
    image = Image.fromarray(pattern(16, 16))
    for name in ("a.jpg", "a.png", "a.webp", "a.gif", "a.tiff", "a.bmp"):
        raw = saved(tmp_path, name, image).read_bytes()
        for length in range(0, len(raw) - 40, max(1, len(raw) // 40)):
            (tmp_path / name).write_bytes(raw[:length])
            try:
                decoded(tmp_path / name)
            except DataError as error:
                assert name in error.where


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path, "bomb.png", Image.new("1", (30_000, 3_000)))
    for read in (read_header, decoded):
        with pytest.raises(DataError, match=r"bomb\.png: expected at most 89478485 pixels"):
            read(path)


def test_32_bits_per_pixel_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.tiff", Image.fromarray(np.zeros((4, 4), dtype=np.float32)))
    with pytest.raises(DataError, match="32 bits per pixel of unknown range"):
        decoded(path)


def test_a_header_is_read_without_decoding(tmp_path: Path) -> None:
    image = Image.fromarray(pattern(HEIGHT, WIDTH))
    path = saved(tmp_path, "a.jpg", image, progressive=True)
    path.write_bytes(path.read_bytes()[:-200])
    assert read_header(path) == ImageHeader(WIDTH, HEIGHT, "RGB", "JPEG", True)
    with pytest.raises(DataError, match="truncated"):
        decoded(path)


PEAK = """
import sys
from pathlib import Path
from PIL import Image
from s2a_edge.run.data.decoding import Region, read_header, read_region
status = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
path, reduction = Path(sys.argv[1]), int(sys.argv[2])
def read(path, reduction):
    read_region(path, (64, 64), Image.Resampling.BICUBIC,
                lambda w, h: Region(0, 0, w, h), lambda w, h: reduction)
read(path.parent / ("tiny" + path.suffix), 1)
before = status()
read(path, reduction)
print(status() - before, read_header(path).decode_bytes(reduction))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("name", "mode", "options", "reduction"),
    [
        ("a.jpg", "RGB", {}, 1),
        ("a.jpg", "RGB", {}, 4),
        ("a.jpg", "RGB", {"progressive": True, "subsampling": 0}, 4),
        ("a.png", "RGBA", {"compress_level": 1}, 1),
        ("a.webp", "RGB", {"method": 0}, 1),
        ("a.tiff", "RGB", {"compression": "tiff_lzw"}, 1),
    ],
)
def test_decoding_takes_no_more_than_announced(
    tmp_path: Path, name: str, mode: str, options: dict[str, Any], reduction: int
) -> None:
    image = Image.fromarray(pattern(1500, 2000)).convert(mode)
    path = saved(tmp_path, name, image, **options)
    saved(tmp_path, "tiny" + path.suffix, image.resize((64, 64)))
    run = [sys.executable, "-c", PEAK, str(path), str(reduction)]
    output = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    measured, announced = (int(x) for x in output.split())
    assert measured <= announced
    assert announced <= 2 * measured + 2**21, "an estimate that is worth counting"
