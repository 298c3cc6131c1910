"""Products, norms, convolutions, pools and interpolation of PyTorch as ONNX nodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.pack.ops.opinfo.trace import Mapped, Mapping, Trace, listed, need


def _matmul(t: Trace, a: Any, b: Any) -> ir.Value:
    return t.op("MatMul", a, b)


def _linear(t: Trace, x: Any, weight: Any, bias: Any = None) -> ir.Value:
    turned = t.op("Transpose", weight, perm=[1, 0] if len(t.shape(weight)) == 2 else [0])
    y = t.op("MatMul", x, turned)
    return y if bias is None else t.op("Add", y, bias)


def _add_product(t: Trace, c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1,
                 ) -> ir.Value:
    return t.op("Add", t.op("Mul", c, beta), t.op("Mul", t.op("MatMul", a, b), alpha))


def _addmm(t: Trace, c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> ir.Value:
    return t.op("Gemm", a, b, c, alpha=float(alpha), beta=float(beta))


def _einsum(t: Trace, operands: Any, equation: str) -> ir.Value:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    named = [v.replace("...", "") for v in terms]
    need(all(len(set(s)) == len(s) for s in named), "a diagonal")
    need(len({len(t.shape(x)) - len(s) for x, s, v in zip(operands, named, terms, strict=True)
              if "..." in v}) <= 1, "an ellipsis of several lengths, which ONNX has not")
    return t.op("Einsum", *operands, equation=equation)


def _ones(t: Trace, *shape: int) -> ir.Value:
    return t.g.constant(np.ones(shape, np.float32))


def _zeros(t: Trace, *shape: int) -> ir.Value:
    return t.g.constant(np.zeros(shape, np.float32))


def _layer_norm(t: Trace, x: Any, shape: Any, weight: Any = None, bias: Any = None,
                eps: float = 1e-5) -> ir.Value:
    need(eps >= 0, "a negative epsilon")
    scale = _ones(t, *shape) if weight is None else weight
    return t.op("LayerNormalization", x, scale, bias, axis=-len(shape), epsilon=eps)


def _group_norm(t: Trace, x: Any, num_groups: int, weight: Any = None, bias: Any = None,
                eps: float = 1e-5) -> ir.Value:
    need(eps >= 0, "a negative epsilon")
    channels = t.shape(x)[1]
    return t.op("GroupNormalization", x, _ones(t, channels) if weight is None else weight,
                _zeros(t, channels) if bias is None else bias, num_groups=num_groups, epsilon=eps)


def _instance_norm(t: Trace, x: Any, running_mean: Any = None, running_var: Any = None,
                   weight: Any = None, bias: Any = None, use_input_stats: bool = True,
                   momentum: float = 0.1, eps: float = 1e-5) -> ir.Value:
    need(use_input_stats, "running statistics")
    return _group_norm(t, x, t.shape(x)[1], weight, bias, eps)


def _batch_norm(t: Trace, x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> ir.Value:
    need(not training, "statistics of the batch")
    channels = t.shape(x)[1]
    return t.op("BatchNormalization", x, _ones(t, channels) if weight is None else weight,
                _zeros(t, channels) if bias is None else bias, t.value(mean, frozen=True),
                t.value(var, frozen=True), epsilon=eps)


def _softmax(op: str, t: Trace, x: Any, dim: int, dtype: Any = None) -> ir.Value:
    need(dtype is None, "a change of dtype")
    need(len(t.shape(x)) > 0, "a softmax of a scalar")
    return t.op(op, x, axis=dim)


def _softmin(t: Trace, x: Any, dim: int, dtype: Any = None) -> ir.Value:
    return _softmax("Softmax", t, t.op("Neg", x), dim, dtype)


def _batched(t: Trace, x: Any, spatial: int) -> tuple[ir.Value, bool]:
    """``x`` with a batch, and whether it had none."""
    alone = len(t.shape(x)) == spatial + 1
    return (t.op("Unsqueeze", x, t.ints([0])) if alone else t.value(x)), alone


def _unbatched(t: Trace, y: ir.Value, alone: bool) -> ir.Value:
    return t.op("Squeeze", y, t.ints([0])) if alone else y


def _conv(t: Trace, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
          dilation: Any = 1, groups: int = 1) -> ir.Value:
    spatial = len(t.shape(weight)) - 2
    value, alone = _batched(t, x, spatial)
    dilations = listed(dilation, spatial)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, t.shape(weight)[2:], strict=True)]
        pads = [*(n // 2 for n in total), *(n - n // 2 for n in total)]
    else:
        pads = listed(0 if padding == "valid" else padding, spatial) * 2
    y = t.op("Conv", value, weight, bias, strides=listed(stride, spatial), pads=pads,
             dilations=dilations, group=groups)
    return _unbatched(t, y, alone)


def _conv_transpose(t: Trace, x: Any, weight: Any, bias: Any = None, stride: Any = 1,
                    padding: Any = 0, output_padding: Any = 0, groups: int = 1,
                    dilation: Any = 1) -> ir.Value:
    spatial = len(t.shape(weight)) - 2
    value, alone = _batched(t, x, spatial)
    need(all(p < s for p, s in zip(listed(output_padding, spatial), listed(stride, spatial),
                                   strict=True)), "output padding that ONNX Runtime refuses")
    y = t.op("ConvTranspose", value, t.value(weight, frozen=True), bias,
             strides=listed(stride, spatial), pads=listed(padding, spatial) * 2,
             output_padding=listed(output_padding, spatial), group=groups,
             dilations=listed(dilation, spatial))
    return _unbatched(t, y, alone)


def _max_pool(spatial: int, t: Trace, x: Any, kernel_size: Any, stride: Any = None,
              padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
              return_indices: bool = False) -> ir.Value:
    value, alone = _batched(t, x, spatial)
    kernel = listed(kernel_size, spatial)
    y = t.op("MaxPool", value, kernel_shape=kernel, strides=listed(stride or kernel, spatial),
             pads=listed(padding, spatial) * 2, dilations=listed(dilation, spatial),
             ceil_mode=int(ceil_mode))
    return _unbatched(t, y, alone)


def _average_pool(spatial: int, t: Trace, x: Any, kernel_size: Any, stride: Any = None,
                  padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
                  divisor_override: Any = None) -> ir.Value:
    need(divisor_override is None, "a divisor of its own")
    value, alone = _batched(t, x, spatial)
    kernel = listed(kernel_size, spatial)
    y = t.op("AveragePool", value, kernel_shape=kernel, strides=listed(stride or kernel, spatial),
             pads=listed(padding, spatial) * 2, ceil_mode=int(ceil_mode),
             count_include_pad=int(count_include_pad))
    return _unbatched(t, y, alone)


def _adaptive_pool(spatial: int, t: Trace, x: Any, output_size: Any) -> ir.Value:
    """Where sizes divide it is an ordinary pool."""
    value, alone = _batched(t, x, spatial)
    sizes = t.shape(value)[2:]
    wanted = [s if w is None else w for s, w in zip(
        sizes, [output_size] * spatial if output_size is None or isinstance(output_size, int)
        else listed(output_size, spatial), strict=True)]
    need(all(s % w == 0 for s, w in zip(sizes, wanted, strict=True)), "windows of unequal sizes")
    kernel = [s // w for s, w in zip(sizes, wanted, strict=True)]
    return _unbatched(t, t.op("AveragePool", value, kernel_shape=kernel, strides=kernel), alone)


_MODES = {"nearest": "nearest", "nearest-exact": "nearest", "linear": "linear",
          "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


def _interpolate(t: Trace, x: Any, size: Any = None, scale_factor: Any = None,
                 mode: str = "nearest", align_corners: bool | None = None,
                 recompute_scale_factor: bool | None = None, antialias: bool = False) -> ir.Value:
    need(mode in _MODES, f"interpolation by {mode}")
    need(not antialias, "antialiasing")
    lead, spatial = t.shape(x)[:2], len(t.shape(x)) - 2
    sizes = scales = None
    if size is not None:
        sizes = t.ints([*lead, *listed(size, spatial)])
    elif recompute_scale_factor:
        factors = [float(f) for f in (scale_factor if isinstance(scale_factor, (list, tuple))
                                      else [scale_factor] * spatial)]
        sizes = t.ints([*lead, *(int(n * f) for n, f in zip(t.shape(x)[2:], factors,
                                                          strict=True))])
    else:
        scales = t.g.constant(np.asarray([1, 1, *[scale_factor] * spatial], np.float32))
    coordinates = "align_corners" if align_corners else "half_pixel"
    if mode == "nearest":
        coordinates = "asymmetric"
    return t.op("Resize", x, None, scales, sizes, mode=_MODES[mode], cubic_coeff_a=-0.75,
                coordinate_transformation_mode=coordinates,
                nearest_mode="round_prefer_ceil" if mode == "nearest-exact" else "floor")


def _pools() -> dict[str, Mapping]:
    found: dict[str, Mapping] = {}
    for spatial in (1, 2, 3):
        found[f"nn.functional.max_pool{spatial}d"] = partial(_max_pool, spatial)
        found[f"nn.functional.avg_pool{spatial}d"] = partial(_average_pool, spatial)
        found[f"nn.functional.adaptive_avg_pool{spatial}d"] = partial(_adaptive_pool, spatial)
        found[f"nn.functional.conv{spatial}d"] = _conv
        found[f"nn.functional.conv_transpose{spatial}d"] = _conv_transpose
    return found


MAPPED: dict[str, Mapping] = {
    "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "mv": _matmul, "__rmatmul__": lambda t, a, b:
        _matmul(t, b, a), "addmm": _addmm, "baddbmm": _add_product,
    "nn.functional.linear": _linear, "einsum": _einsum,
    "nn.functional.layer_norm": _layer_norm, "nn.functional.group_norm": _group_norm,
    "nn.functional.instance_norm": _instance_norm, "nn.functional.batch_norm": _batch_norm,
    "softmax": partial(_softmax, "Softmax"), "log_softmax": partial(_softmax, "LogSoftmax"),
    "nn.functional.softmin": _softmin,
    **_pools(),
    **{f"nn.functional.interpolate.{mode}": _interpolate for mode in _MODES},
}

__all__ = ["MAPPED", "Mapped"]
