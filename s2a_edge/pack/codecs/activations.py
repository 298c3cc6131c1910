"""Elementwise activation functions and their derivatives, in float64 numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
_ERF = np.vectorize(math.erf, otypes=[np.float64])
_GELU_TANH = math.sqrt(2.0 / math.pi)


def _sigmoid(x: Doubles) -> Doubles:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _gelu(x: Doubles) -> Doubles:
    density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    cumulative: Doubles = 0.5 * (1.0 + _ERF(x / math.sqrt(2.0)))
    return cumulative + x * density


def _gelu_tanh(x: Doubles) -> Doubles:
    t = np.tanh(_GELU_TANH * (x + 0.044715 * x**3))
    slope = _GELU_TANH * (1.0 + 3 * 0.044715 * x * x)
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope


def _silu(x: Doubles) -> Doubles:
    s = _sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


def _mish(x: Doubles) -> Doubles:
    t = np.tanh(np.logaddexp(0.0, x))
    return t + x * (1.0 - t * t) * _sigmoid(x)


def _hardswish(x: Doubles) -> Doubles:
    return np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, x / 3 + 0.5))


def _elu(x: Doubles) -> Doubles:
    return np.where(x > 0, 1.0, np.exp(np.minimum(x, 0.0)))


def _sigmoid_slope(x: Doubles) -> Doubles:
    s = _sigmoid(x)
    return s * (1.0 - s)


def _tanh_slope(x: Doubles) -> Doubles:
    return 1.0 - np.tanh(x) ** 2


DERIVATIVES: dict[str, Callable[[Doubles], Doubles]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "mish": _mish,
    "hardswish": _hardswish,
    "elu": _elu,
    "softplus": _sigmoid,
    "sigmoid": _sigmoid_slope,
    "tanh": _tanh_slope,
}

__all__ = ["DERIVATIVES", "Doubles"]
