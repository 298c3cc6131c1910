"""More samples over maps [N, C, ...]: convolution, norms, pooling, resizing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows

from tests.pack.ops.sample import Sample, frozen, ints

T = torch.tensor
K_GROUPED, K_WIDE, K_LINE = frozen(6, 2, 3, 3), frozen(5, 3, 1, 4), frozen(4, 3, 3)
K_VOLUME, K_DEPTH, K_CENTRE = frozen(2, 3, 2, 3, 1), frozen(6, 1, 3, 3), frozen(4, 3, 1, 1)
KT_GROUPED, KT_LINE = frozen(4, 3, 3, 3), frozen(3, 2, 4)
MEAN, VAR, SCALE = np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.5, 2.0]), np.array([1.0, 2.0, 0.5])
GN_W, GN_B = frozen(6), frozen(6, seed=8)


def _conv(kernel: np.ndarray, **kw: Any) -> Callable[..., Any]:
    call = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[kernel.ndim]
    return lambda x, b=None: call(x, T(kernel).to(x), b, **kw)


def _deconv(kernel: np.ndarray, **kw: Any) -> Callable[..., Any]:
    call = {3: F.conv_transpose1d, 4: F.conv_transpose2d}[kernel.ndim]
    return lambda x, b=None: call(x, T(kernel).to(x), b, **kw)


CONVOLUTION = [
    Sample("Conv", ((2, 4, 6, 7), K_GROUPED, (6,)), _conv(K_GROUPED, padding=1, groups=2),
           {"pads": [1, 1, 1, 1], "group": 2}, note="grouped"),
    Sample("Conv", ((1, 4, 9, 8), K_GROUPED), _conv(K_GROUPED, stride=2, dilation=2, groups=2),
           {"strides": [2, 2], "dilations": [2, 2], "group": 2}, note="grouped-dilated-strided"),
    Sample("Conv", ((2, 6, 7, 7), K_DEPTH, (6,)), _conv(K_DEPTH, stride=2, padding=1, groups=6),
           {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 6}, note="depthwise-strided"),
    Sample("Conv", ((2, 6, 8, 5), K_DEPTH), _conv(K_DEPTH, padding=2, dilation=2, groups=6),
           {"pads": [2, 2, 2, 2], "dilations": [2, 2], "group": 6}, note="depthwise-dilated"),
    Sample("Conv", ((2, 6, 5, 5), K_DEPTH), _conv(K_DEPTH, padding=3, groups=6),
           {"pads": [3, 3, 3, 3], "group": 6}, note="depthwise-overpadded"),
    Sample("Conv", ((2, 1, 5, 5), frozen(4, 1, 3, 3)), _conv(frozen(4, 1, 3, 3)), note="one-in"),
    Sample("Conv", ((2, 3, 1, 5), K_WIDE), _conv(K_WIDE, padding=(0, 1)),
           {"pads": [0, 1, 0, 1]}, note="flat"),
    Sample("Conv", ((2, 3, 5, 5), K_CENTRE), _conv(K_CENTRE, padding=1), {"pads": [1, 1, 1, 1]},
           note="1x1-padded"),
    Sample("Conv", ((1, 4, 1, 1), frozen(2, 4, 1, 1), (2,)), _conv(frozen(2, 4, 1, 1)),
           note="pooled"),
    Sample("Conv", ((2, 3, 8), K_LINE, (4,)), _conv(K_LINE, stride=2, padding=1),
           {"pads": [1, 1], "strides": [2]}, note="1d"),
    Sample("Conv", ((1, 3, 3, 4, 2), K_VOLUME), _conv(K_VOLUME), note="3d"),
    Sample("Conv", ((1, 3, 7, 6), K_WIDE), lambda x: F.conv2d(F.pad(x, (2, 1)), T(K_WIDE).to(x)),
           {"auto_pad": "SAME_LOWER"}, note="same-lower", double=False),
    Sample("Conv", ((1, 3, 7, 6), K_WIDE), _conv(K_WIDE), {"auto_pad": "VALID"}, note="valid"),
    Sample("ConvTranspose", ((2, 4, 3, 4), KT_GROUPED, (6,)),
           _deconv(KT_GROUPED, stride=2, padding=1, output_padding=1, groups=2),
           {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1], "group": 2},
           note="grouped"),
    Sample("ConvTranspose", ((1, 4, 3, 1), KT_GROUPED), _deconv(KT_GROUPED, dilation=2),
           {"dilations": [2, 2]}, note="dilated"),
    Sample("ConvTranspose", ((1, 3, 5), KT_LINE), _deconv(KT_LINE, stride=3), {"strides": [3]},
           note="1d"),
]


def _batch_norm(x: Any, scale: Any, bias: Any, eps: float = 1e-5) -> Any:
    return F.batch_norm(x, T(MEAN).to(x), T(VAR).to(x), scale, bias, eps=eps)


NORMS = [
    Sample("BatchNormalization", ((2, 3, 4, 1), (3,), (3,), MEAN, VAR), _batch_norm, note="scale"),
    Sample("BatchNormalization", ((2, 3), SCALE, (3,), MEAN, VAR),
           lambda x, b: _batch_norm(x, T(SCALE).to(x), b, 1e-3), {"epsilon": 1e-3}, note="rows"),
    Sample("BatchNormalization", ((1, 3, 5), SCALE, MEAN, MEAN, VAR),
           lambda x: _batch_norm(x, T(SCALE).to(x), T(MEAN).to(x)), note="frozen"),
    Sample("GroupNormalization", ((2, 6, 3, 4), (6,), (6,)),
           lambda x, w, b: F.group_norm(x, 3, w, b), {"num_groups": 3}),
    Sample("GroupNormalization", ((1, 6, 1, 5), GN_W, (6,)),
           lambda x, b: F.group_norm(x, 1, T(GN_W).to(x), b, 1e-3),
           {"num_groups": 1, "epsilon": 1e-3}, note="one-group"),
    Sample("GroupNormalization", ((2, 6, 5), GN_W, GN_B),
           lambda x: F.instance_norm(x, weight=T(GN_W).to(x), bias=T(GN_B).to(x)),
           {"num_groups": 6}, note="instances"),
    Sample("LogSoftmax", ((2, 3, 5),), lambda x: x.log_softmax(-1), {"axis": -1}),
    Sample("LogSoftmax", ((2, 1, 5),), lambda x: x.log_softmax(1), {"axis": 1}, note="one"),
    Sample("Softmax", ((2, 1, 3),), lambda x: x.softmax(-1), note="default"),
    Sample("Softmax", ((2, 3, 1),), lambda x: x.softmax(-2), {"axis": -2}, note="one"),
]

POOLING = [
    Sample("MaxPool", ((2, 3, 8),), lambda x: F.max_pool1d(x, 3, 2, 1),
           {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, note="1d"),
    Sample("MaxPool", ((1, 1, 1, 5),), lambda x: F.max_pool2d(x, (1, 2), (1, 2)),
           {"kernel_shape": [1, 2], "strides": [1, 2]}, note="flat"),
    Sample("MaxPool", ((1, 2, 6, 5),), lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
           {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
           note="ceil-padded"),
    Sample("MaxPool", ((1, 2, 5, 4),), lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True),
           {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
           note="ceil-in-padding", double=False),
    Sample("AveragePool", ((1, 2, 4, 5),), lambda x: F.avg_pool2d(x, 2, 3, ceil_mode=True),
           {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1},
           note="ceil-in-gap", double=False),
    Sample("MaxPool", ((1, 2, 9, 8),), lambda x: F.max_pool2d(x, 3, 2, 1, dilation=2),
           {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1],
            "dilations": [2, 2]}, note="dilated"),
    Sample("MaxPool", ((1, 2, 6, 6),), lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1),
                                                                    value=-9e9), 3, 2),
           {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
           note="same-upper", double=False),
    Sample("AveragePool", ((2, 3, 8),), lambda x: F.avg_pool1d(x, 3, 2, 1),
           {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "count_include_pad": 1},
           note="1d"),
    Sample("AveragePool", ((1, 1, 6, 1),), lambda x: F.avg_pool2d(x, (2, 1)),
           {"kernel_shape": [2, 1], "strides": [2, 1]}, note="flat"),
    Sample("AveragePool", ((1, 2, 6, 7),), lambda x: F.avg_pool2d(
        x, 3, 2, ceil_mode=True, count_include_pad=False),
           {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, note="ceil"),
    Sample("AveragePool", ((1, 2, 6, 7),), lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
           {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1,
            "count_include_pad": 1}, note="ceil-include-pad", double=False),
    Sample("AveragePool", ((1, 2, 5, 5),), lambda x: F.avg_pool2d(x, 3, 1),
           {"kernel_shape": [3, 3]}, note="overlapping"),
    Sample("GlobalAveragePool", ((1, 2, 5),), lambda x: x.mean(2, keepdim=True), note="1d"),
    Sample("GlobalAveragePool", ((1, 1, 1, 3),), lambda x: x.mean((2, 3), keepdim=True),
           note="flat"),
]

NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
           "nearest_mode": "floor"}
LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def _scales(*values: float) -> np.ndarray:
    """Kept in float32 whatever the sample's dtype: the operator takes no other."""
    return np.array(values, np.float32)


def _resized(**kw: Any) -> Callable[[Any], Any]:
    return lambda x: F.interpolate(x, **kw)


RESIZE = [
    Sample("Resize", ((2, 3, 2, 3), None, _scales(1, 1, 2, 3)), _resized(scale_factor=(2, 3)),
           NEAREST, note="nearest"),
    Sample("Resize", ((1, 2, 1, 3), None, None, ints(1, 2, 4, 5)), _resized(size=(4, 5)),
           NEAREST, note="nearest-sizes"),
    Sample("Resize", ((1, 2, 5, 6), None, None, ints(1, 2, 2, 3)), _resized(size=(2, 3)),
           NEAREST, note="nearest-down"),
    Sample("Resize", ((2, 2, 3, 4), None, _scales(1, 1, 2, 2)),
           _resized(scale_factor=2, mode="bilinear"), LINEAR, note="linear"),
    Sample("Resize", ((1, 2, 3, 4), None, None, ints(1, 2, 5, 3)),
           _resized(size=(5, 3), mode="bilinear"), LINEAR, note="linear-sizes"),
    Sample("Resize", ((1, 2, 3, 4), None, None, ints(1, 2, 5, 7)),
           _resized(size=(5, 7), mode="bilinear", align_corners=True),
           {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
           note="aligned"),
    Sample("Resize", ((1, 2, 4, 4), None, None, ints(1, 2, 6, 7)),
           _resized(size=(6, 7), mode="bicubic"),
           {"mode": "cubic", "coordinate_transformation_mode": "half_pixel",
            "cubic_coeff_a": -0.75}, note="cubic"),
    Sample("Resize", ((1, 2, 3, 4), None, _scales(2, 2)), _resized(scale_factor=2),
           {**NEAREST, "axes": [-2, -1]}, note="axes", double=False),
]

SAMPLES = [*CONVOLUTION, *NORMS, *POOLING, *RESIZE]
