"""One image file to 8-bit pixels, in a bounded number of bytes.

Everything that depends on a file format is here: which formats are read, what a decoder may raise,
how many bytes decoding takes, EXIF orientation, and the ways to get to 8-bit gray or RGB. Nothing
is decoded twice or copied at full size where a copy of the small result will do.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Image.open would otherwise load all of Pillow's plugins when the first formats do not match.
from PIL import (  # noqa: F401  (imported to be registered)
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from s2a_edge.run.data.dtypes import U8
from s2a_edge.spec.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: JPEGs of two-lens cameras, opened by the JPEG plugin

# What Pillow's decoders raise on damaged files besides OSError (found in its plugins).
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

# Python's warning filters belong to the process, so one thread at a time; it also means that one
# image at a time is decoded, which is what the budget counts.
_DECODER_LOCK = threading.Lock()

_ORIENTATION_TAG = 0x0112  # EXIF 2.32, 4.6.4: Orientation
# Orientation -> (transpose, flip x, flip y): flip what is stored, then swap the axes.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}

# Bytes per pixel of decoding and converting to gray or RGB: Pillow keeps "L", "P" and "1" in one
# byte and all other 8-bit modes, "LA" too, in four; a conversion holds both copies.
_MODE_BYTES = {"L": 1, "RGB": 4, "P": 5, "1": 2, "I": 16, "F": 16}
_OTHER_MODE_BYTES = 8
_PROGRESSIVE_BYTES = 8  # 16-bit coefficients of up to four full-size components; no draft helps
_WEBP_BYTES = 20  # libwebp's animation decoder: two RGBA canvases, its output, Pillow's, the file
_TIFF_EXTRA_BYTES = 4  # libtiff's strip or tile next to the image
_FIXED_BYTES = 2**20  # plugins' buffers and the resampling's rows


@dataclass(frozen=True)
class Region:
    """A rectangle in pixels of the upright full-size image; fractions are fine."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself before it is decoded; a JPEG's sides are those when upright."""

    width: int
    height: int
    mode: str
    format: str
    progressive: bool

    def decode_bytes(self, reduction: int) -> int:
        """Upper bound of the bytes that :func:`read_region` takes, at a JPEG ``reduction``."""
        pixels = self.width * self.height
        per_pixel = _MODE_BYTES.get(self.mode, _OTHER_MODE_BYTES)
        if self.format == "WEBP":
            return pixels * _WEBP_BYTES + _FIXED_BYTES
        if self.format == "TIFF":
            return pixels * (per_pixel + _TIFF_EXTRA_BYTES) + _FIXED_BYTES
        if self.format in _JPEG_FORMATS:
            coefficients = pixels * _PROGRESSIVE_BYTES if self.progressive else 0
            return pixels * per_pixel // reduction**2 + coefficients + _FIXED_BYTES
        return pixels * per_pixel + _FIXED_BYTES


def read_header(path: Path) -> ImageHeader:
    """Size and mode of an image file; opens it, decodes nothing.

    Raises:
        DataError: the file cannot be read, is no image, or claims more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    with _opened(path) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ValueError(f"an image of {width}x{height} pixels")
        if image.format in _JPEG_FORMATS and _orientation(image)[0]:
            width, height = height, width
        progressive = bool(image.info.get("progressive"))
        return ImageHeader(width, height, image.mode, str(image.format), progressive)


def read_region(
    path: Path,
    size: tuple[int, int],
    resample: Image.Resampling,
    choose: Callable[[int, int], Region],
    reduction: Callable[[int, int], int],
) -> U8:
    """Decode a file and resample one region of it to ``size``.

    Args:
        path: the image file; of an animation, the first frame.
        size: height and width of the result.
        resample: Pillow's filter; it antialiases when it shrinks.
        choose: upright width and height -> the region wanted.
        reduction: upright width and height -> 1, 2, 4 or 8, at which a JPEG may be decoded.

    Returns:
        uint8 [H, W, 1] for gray images, [H, W, 3] RGB for all others; an alpha channel is dropped,
        as the field's loaders do; of 16 bits the upper 8 are kept.

    Raises:
        DataError: the file cannot be read or decoded whole; names the file.
    """
    with _opened(path) as image:
        transpose, flip_x, flip_y = False, False, False
        scale = 1
        if image.format in _JPEG_FORMATS:
            # Before decoding: the reduction depends on the upright size.
            transpose, flip_x, flip_y = _orientation(image)
            full = image.size
            scale = reduction(*(full[::-1] if transpose else full))
            if scale > 1:
                image.draft(None, (full[0] // scale, full[1] // scale))
        else:
            image.load()  # first: PNG may hold its EXIF behind the pixels
            if image.format != "TIFF":  # Pillow turns these upright itself; 10.0 keeps the tag
                transpose, flip_x, flip_y = _orientation(image)
            full = image.size
        width, height = full[::-1] if transpose else full
        box = _stored_box(choose(width, height), full, (transpose, flip_x, flip_y), scale)
        out_height, out_width = size[::-1] if transpose else size
        small = _to_8_bits(image).resize((out_width, out_height), resample, box=box)
        pixels = np.asarray(small, dtype=np.uint8).reshape(out_height, out_width, -1)
    if flip_x:
        pixels = pixels[:, ::-1]
    if flip_y:
        pixels = pixels[::-1]
    return pixels.transpose(1, 0, 2) if transpose else pixels


def _stored_box(
    region: Region, full: tuple[int, int], turned: tuple[bool, bool, bool], scale: int
) -> tuple[float, float, float, float]:
    """An upright region as left, top, right, bottom of the stored image, shrunk by ``scale``."""
    transpose, flip_x, flip_y = turned
    left, top = region.left, region.top
    right, bottom = left + region.width, top + region.height
    if transpose:
        left, top, right, bottom = top, left, bottom, right
    if flip_x:
        left, right = full[0] - right, full[0] - left
    if flip_y:
        top, bottom = full[1] - bottom, full[1] - top
    # Sums of fractions may leave the image by a rounding error, which Pillow refuses.
    left, top = max(left, 0.0), max(top, 0.0)
    right, bottom = min(right, float(full[0])), min(bottom, float(full[1]))
    return left / scale, top / scale, right / scale, bottom / scale


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The image as "L" or "RGB", without a copy where it is that already."""
    image.load()
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError("32 bits per pixel of unknown range")
    # Pillow warns about palettes with transparency; alpha is dropped in any case.
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _orientation(image: Image.Image) -> tuple[bool, bool, bool]:
    try:
        tag = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:  # damaged metadata around good pixels
        tag = 1
    return _ORIENTATIONS.get(tag, _ORIENTATIONS[1])


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open ``path`` as an image; whatever a decoder raises inside the block becomes a DataError."""
    with _DECODER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # Opened here and not by Pillow, which would map some files: an I/O error is then an
            # exception instead of a SIGBUS.
            with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
                yield image
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(path) from error
        except UnidentifiedImageError as error:
            raise _unreadable(path, "no known image format or a damaged header") from error
        except _DECODER_ERRORS as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise _unreadable(path, str(reason)) from error


def _too_large(path: Path) -> DataError:
    return DataError(
        where=printable(path),
        expected=f"at most {Image.MAX_IMAGE_PIXELS} pixels",
        got="a header that claims more",
        todo="shrink the image or remove the file",
    )


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        where=printable(path),
        expected="a complete JPEG, PNG, BMP, WebP, GIF or TIFF image",
        got=reason,
        todo="replace or remove the file",
    )


def printable(path: Path | str) -> str:
    """A path as text that any terminal can print: undecodable bytes become replacement marks."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
