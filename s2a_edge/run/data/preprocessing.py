"""From an image file to a model's input, as the manifest's ``preprocessing`` says.

The evaluation geometry is timm's (``timm.data.create_transform(is_training=False)``): the shorter
side is resized to ``floor(size / crop_pct)``, then the centre is cropped. Here both happen in one
resampling of the region that is kept, so that a panorama does not first grow to its full length.
The result differs from timm's by Pillow's rounding between its passes: mean 0.16 of 255 levels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from s2a_edge.run.data.decoding import Region
from s2a_edge.run.data.dtypes import F32, U8, Row
from s2a_edge.spec.errors import BundleError, DataError
from s2a_edge.spec.manifest import AnyPreprocessing, InputSpec, Preprocessing

# A JPEG is decoded at 1/2, 1/4 or 1/8 where the resampling still shrinks by at least this factor.
# Difference to the full decode in 8-bit levels, on 4000x3000 mosaics (Pillow 13, bicubic): solar
# cells at 300 px (gray) mean 0.3, largest 3; CIFAR-10 images (4:2:0) at 128 px each 0.6 and 5, at
# 32 px, sharper than photographs get, 1.2 and 9. At a factor of 6: 0.2 and 1, 0.2 and 2, 0.3 and 3.
_MIN_SHRINK_AFTER_DRAFT = 3.0

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resample_filter(spec: Preprocessing) -> Image.Resampling:
    """Pillow's filter of ``spec.interpolation``."""
    return _RESAMPLE[spec.interpolation]


def resized_size(width: int, height: int, spec: Preprocessing) -> tuple[int, int]:
    """Width and height after the shorter side was resized, before the crop.

    As torchvision's ``Resize`` for square inputs (the longer side is truncated) and as timm's
    ``ResizeKeepRatio`` for others (both are rounded).
    """
    target_height, target_width = (math.floor(side / spec.crop_pct) for side in spec.size)
    if target_height == target_width:
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_height * width / height), target_height
    ratio = min(height / target_height, width / target_width)
    return round(width / ratio), round(height / ratio)


def center_region(width: int, height: int, spec: Preprocessing) -> Region:
    """What evaluation sees of a ``width`` x ``height`` image."""
    resized_width, resized_height = resized_size(width, height, spec)
    crop_height, crop_width = spec.size
    left = round((resized_width - crop_width) / 2)
    top = round((resized_height - crop_height) / 2)
    x, y = width / resized_width, height / resized_height
    return Region(left * x, top * y, crop_width * x, crop_height * y)


def jpeg_reduction(width: int, height: int, spec: Preprocessing) -> int:
    """1, 2, 4 or 8: how far a JPEG of this size may be reduced while it is decoded.

    The same for training and evaluation, so that decoding takes the same bytes in both and a model
    is trained on the pixels it is evaluated on. A random crop may then be enlarged a little, less
    than those of a usual photograph of 500 px.
    """
    resized_width, resized_height = resized_size(width, height, spec)
    shrink = min(width / resized_width, height / resized_height)
    for reduction in (8, 4, 2):
        if shrink / reduction >= _MIN_SHRINK_AFTER_DRAFT:
            return reduction
    return 1


def normalization_table(spec: Preprocessing) -> F32:
    """``(value * scale - mean) / std`` of all 8-bit values: float32 [3, 256].

    Row i belongs to the model's channel i (BGR models: row 0 is blue). Calculated in float64 and
    rounded once.
    """
    values = np.arange(256, dtype=np.float64) * spec.scale
    mean = np.array(spec.mean, dtype=np.float64)[:, None]
    std = np.array(spec.std, dtype=np.float64)[:, None]
    return ((values - mean) / std).astype(np.float32)


def write_normalized(pixels: U8, table: F32, spec: Preprocessing, row: Row) -> None:
    """Look every pixel up and write it where the model expects it.

    Args:
        pixels: uint8 [H, W, 1] gray or [H, W, 3] RGB.
        table: of :func:`normalization_table`.
        spec: its ``layout`` and ``channels``.
        row: float32 [3, H, W] for NCHW or [H, W, 3] for NHWC; overwritten.
    """
    planes = row if spec.layout == "NCHW" else np.moveaxis(row, -1, 0)
    source = pixels[..., ::-1] if spec.channels == "BGR" else pixels
    gray = source.shape[-1] == 1
    for channel in range(3):
        planes[channel] = table[channel][source[..., 0 if gray else channel]]


def check_image_input(
    inputs: tuple[InputSpec, ...], spec: AnyPreprocessing | None
) -> Preprocessing:
    """The preprocessing of a bundle that takes images, after a look at its only input.

    Raises:
        DataError: the bundle takes something else.
        BundleError: input and preprocessing disagree.
    """
    image = spec if isinstance(spec, Preprocessing) else None
    if image is None or len(inputs) != 1 or inputs[0].kind != "image":
        names = ", ".join(f"{x.name} ({x.kind})" for x in inputs)
        raise DataError(
            where="image folder",
            expected="a bundle with one image input and its preprocessing",
            got=f"one that takes {names}" + ("" if image else ", without preprocessing"),
            todo="give the data as an .npz file of these inputs and 'labels'",
        )
    height, width = image.size
    shape = (3, height, width) if image.layout == "NCHW" else (height, width, 3)
    if inputs[0].shape != shape or inputs[0].dtype != "float32":
        raise BundleError(
            where=f"manifest.json: inputs: {inputs[0].name}",
            expected=f"float32 {list(shape)}, as its preprocessing makes it",
            got=f"{inputs[0].dtype} {list(inputs[0].shape)}",
            todo="pack the bundle again",
        )
    return image
