"""Image preprocessing of a source that does not say its own, and a user's corrections."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.manifest import Preprocessing

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PreprocessingOptions:
    """What a user says about images; None: as the source says.

    Attributes:
        mean: per channel, in the order of ``channels``.
        std: per channel.
        scale: factor on 0..255 pixels before mean and deviation.
        channels: ``RGB`` or ``BGR``.
        crop_pct: side of the centre crop as a share of the resized image.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    scale: float | None = None
    channels: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        checks = [
            ("--mean", self.mean is None or len(self.mean) == 3, "three numbers", self.mean),
            ("--std", self.std is None or (len(self.std) == 3 and min(self.std) > 0),
             "three numbers above 0", self.std),
            ("--scale", self.scale is None or self.scale > 0, "a number above 0", self.scale),
            ("--channels", self.channels in (None, "RGB", "BGR"), "RGB or BGR", self.channels),
            ("--crop-pct", self.crop_pct is None or 0 < self.crop_pct <= 1,
             "a share above 0 and up to 1", self.crop_pct),
            ("--interpolation", self.interpolation in (None, "bilinear", "bicubic"),
             "bilinear or bicubic", self.interpolation),
        ]
        for where, holds, expected, got in checks:
            if not holds:
                raise UsageError(where=where, expected=expected, got=str(got),
                                 todo="correct the flag")

    def applied_to(self, found: Preprocessing | None) -> Preprocessing | None:
        """``found`` with these values in place of its own.

        Raises:
            UsageError: if there is something to apply but no image input.
        """
        given: dict[str, Any] = {f.name: value for f in fields(self)
                                 if (value := getattr(self, f.name)) is not None}
        if not given:
            return found
        if found is None:
            raise UsageError(where=f"--{next(iter(given)).replace('_', '-')}",
                             expected="an input that is an image [3, H, W] or [H, W, 3]",
                             got="another input", todo="leave the flag off")
        return replace(found, **given)


def image_layout(shape: tuple[int, ...]) -> str | None:
    """``NCHW`` or ``NHWC`` by the axis of a sample that has three channels; else None."""
    if len(shape) != 3:
        return None
    return "NCHW" if shape[0] == 3 else "NHWC" if shape[2] == 3 else None


def assumed_preprocessing(shape: tuple[int, ...]) -> Preprocessing | None:
    """ImageNet's mean and deviation, for an image input of which nothing is known."""
    layout = image_layout(shape)
    if layout is None:
        return None
    nchw = layout == "NCHW"
    return Preprocessing(
        kind="image", size=(shape[1], shape[2]) if nchw else (shape[0], shape[1]),
        layout="NCHW" if nchw else "NHWC", channels="RGB", scale=1 / 255, mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD, interpolation="bicubic", crop_pct=1.0)
