"""Elementwise calls of PyTorch as ONNX nodes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from s2a_edge.pack.graph import MICROSOFT
from tests.pack.ops.opinfo.trace import Mapping, Trace, listed, need

_UNARY = {
    "abs": "Abs", "ceil": "Ceil", "cos": "Cos", "erf": "Erf", "exp": "Exp", "floor": "Floor",
    "log": "Log", "neg": "Neg", "nn.functional.hardswish": "HardSwish",
    "nn.functional.mish": "Mish", "nn.functional.relu": "Relu",
    "nn.functional.softsign": "Softsign", "reciprocal": "Reciprocal", "sigmoid": "Sigmoid",
    "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "tanh": "Tanh",
}
_BINARY = {"div.no_rounding_mode": "Div", "maximum": "Max", "minimum": "Min", "mul": "Mul",
           "pow": "Pow", "max.binary": "Max", "min.binary": "Min"}


def _unary(op: str, t: Trace, x: Any, *, inplace: bool = False) -> ir.Value:
    return t.op(op, x)


def _binary(op: str, t: Trace, x: Any, y: Any, *, rounding_mode: None = None) -> ir.Value:
    return t.op(op, x, y)


def _sum(op: str, t: Trace, x: Any, y: Any, *, alpha: float = 1) -> ir.Value:
    return t.op(op, x, y if alpha == 1 else t.op("Mul", y, alpha))


def _rsqrt(t: Trace, x: Any) -> ir.Value:
    return t.op("Reciprocal", t.op("Sqrt", x))


def _square(t: Trace, x: Any) -> ir.Value:
    return t.op("Mul", x, x)


def _silu(t: Trace, x: Any) -> ir.Value:
    return t.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)


def _gelu(t: Trace, x: Any, approximate: str = "none") -> ir.Value:
    return t.op("Gelu", x, approximate=approximate)


def _softplus(t: Trace, x: Any, beta: float = 1, threshold: float = 20) -> ir.Value:
    scaled = t.op("Mul", x, beta)
    smooth = t.op("Div", t.op("Softplus", scaled), beta)
    return t.op("Where", t.op("Greater", scaled, threshold), x, smooth)


def _log_sigmoid(t: Trace, x: Any) -> ir.Value:
    return t.op("Neg", t.op("Softplus", t.op("Neg", x)))


def _tanhshrink(t: Trace, x: Any) -> ir.Value:
    return t.op("Sub", x, t.op("Tanh", x))


def _elu(op: str, t: Trace, x: Any, alpha: float = 1.0, inplace: bool = False) -> ir.Value:
    return t.op(op, x, alpha=float(alpha))


def _selu(t: Trace, x: Any, inplace: bool = False) -> ir.Value:
    return t.op("Selu", x)


def _leaky_relu(t: Trace, x: Any, negative_slope: float = 0.01, inplace: bool = False,
                ) -> ir.Value:
    return t.op("LeakyRelu", x, alpha=float(negative_slope))


def _hard_sigmoid(t: Trace, x: Any, inplace: bool = False) -> ir.Value:
    return t.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _relu6(t: Trace, x: Any, inplace: bool = False) -> ir.Value:
    return t.op("Clip", x, 0.0, 6.0)


def _hardtanh(t: Trace, x: Any, min_val: float = -1.0, max_val: float = 1.0,
              inplace: bool = False) -> ir.Value:
    return t.op("Clip", x, float(min_val), float(max_val))


def _threshold(t: Trace, x: Any, threshold: float, value: float) -> ir.Value:
    return t.op("Where", t.op("Greater", x, float(threshold)), x, float(value))


def _prelu(t: Trace, x: Any, weight: Any) -> ir.Value:
    shape = t.shape(x)
    need(len(shape) > 0, "prelu of a scalar")
    slope = t.reshape(weight, [-1, *[1] * (len(shape) - 2)] if len(shape) > 1 else [-1])
    return t.op("PRelu", x, slope)


def _clamp(t: Trace, x: Any, min: Any = None, max: Any = None) -> ir.Value:
    low, high = (v.float() if isinstance(v, torch.Tensor) and not v.is_floating_point() else v
                 for v in (min, max))
    y = t.value(x) if low is None else t.op("Max", x, low)
    return y if high is None else t.op("Min", y, high)


def _where(t: Trace, x: Any, condition: Any, other: Any) -> ir.Value:
    return t.op("Where", condition, x, other)


def _lerp(t: Trace, x: Any, end: Any, weight: Any) -> ir.Value:
    return t.op("Add", x, t.op("Mul", t.op("Sub", end, x), weight))


def _addc(op: str, t: Trace, x: Any, a: Any, b: Any, *, value: float = 1) -> ir.Value:
    return t.op("Add", x, t.op("Mul", t.op(op, a, b), value))


def _glu(t: Trace, x: Any, dim: int = -1) -> ir.Value:
    a, b = t.g.multi("Split", [t.value(x)], 2, axis=dim, num_outputs=2)
    return t.op("Mul", a, t.op("Sigmoid", b))


def _round(t: Trace, x: Any, *, decimals: int = 0) -> ir.Value:
    scale = 10.0**decimals
    return t.op("Div", t.op("Round", t.op("Mul", x, scale)), scale)


def _normalize(t: Trace, x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> ir.Value:
    need(p in (1.0, 2.0), "a norm of another order than 1 and 2")
    norm = t.op(f"ReduceL{int(p)}", x, t.ints([dim]), keepdims=1)
    return t.op("Div", x, t.op("Max", norm, eps))


def _log_sum(t: Trace, x: Any, dim: Any, keepdim: bool = False) -> ir.Value:
    shape = t.shape(x)
    need(len(shape) > 0, "a reduction of a scalar")
    return t.op("ReduceLogSumExp", x, t.ints(listed(dim, 1)), keepdims=int(keepdim))


def _reduction(op: str, t: Trace, x: Any, dim: Any = None, keepdim: bool = False, *,
               dtype: Any = None) -> ir.Value:
    need(dtype is None, "a change of dtype")
    need(len(t.shape(x)) > 0, "a reduction of a scalar")
    axes = None if dim is None or dim == [] or dim == () else t.ints(listed(dim, 1))
    return t.op(op, x, axes, keepdims=int(keepdim))


def _vector_norm(t: Trace, x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, *,
                 dtype: Any = None) -> ir.Value:
    if ord in (math.inf, -math.inf):
        op = "ReduceMax" if ord > 0 else "ReduceMin"
        return _reduction(op, t, t.op("Abs", x), dim, keepdim, dtype=dtype)
    need(ord in (1, 2), "a norm of another order than 1 and 2")
    return _reduction(f"ReduceL{int(ord)}", t, x, dim, keepdim, dtype=dtype)


def _cumsum(t: Trace, x: Any, dim: int, *, dtype: Any = None) -> ir.Value:
    need(len(t.shape(x)) > 0, "a reduction of a scalar")
    return t.op("CumSum", x, t.ints(dim))


MAPPED: dict[str, Mapping] = {
    **{name: partial(_unary, op) for name, op in _UNARY.items()},
    **{name: partial(_binary, op) for name, op in _BINARY.items()},
    "add": partial(_sum, "Add"), "sub": partial(_sum, "Sub"), "rsqrt": _rsqrt, "square": _square,
    "nn.functional.silu": _silu, "nn.functional.gelu": _gelu, "nn.functional.softplus": _softplus,
    "nn.functional.logsigmoid": _log_sigmoid, "nn.functional.tanhshrink": _tanhshrink,
    "nn.functional.elu": partial(_elu, "Elu"), "nn.functional.celu": partial(_elu, "Celu"),
    "nn.functional.selu": _selu, "nn.functional.leaky_relu": _leaky_relu,
    "nn.functional.hardsigmoid": _hard_sigmoid, "nn.functional.relu6": _relu6,
    "nn.functional.hardtanh": _hardtanh, "nn.functional.threshold": _threshold,
    "nn.functional.prelu": _prelu, "clamp": _clamp, "where": _where, "lerp": _lerp,
    "addcmul": partial(_addc, "Mul"), "addcdiv": partial(_addc, "Div"),
    "nn.functional.glu": _glu, "round": _round, "round.decimals_3": _round,
    "nn.functional.normalize": _normalize, "logsumexp": _log_sum,
    "sum": partial(_reduction, "ReduceSum"), "mean": partial(_reduction, "ReduceMean"),
    "amax": partial(_reduction, "ReduceMax"), "amin": partial(_reduction, "ReduceMin"),
    "linalg.vector_norm": _vector_norm, "cumsum": _cumsum,
}
