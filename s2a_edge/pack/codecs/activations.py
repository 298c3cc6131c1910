"""Derivatives of elementwise activation functions in float64 numpy; all are bounded."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Derivative = Callable[[Doubles], Doubles]

_GELU_TANH_SLOPE = math.sqrt(2.0 / math.pi)
_GELU_TANH_CUBE = 0.044715


def sigmoid(x: Doubles) -> Doubles:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _gelu(x: Doubles) -> Doubles:
    # g = x Φ(x): g' = Φ(x) + x φ(x)
    density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    erf = np.array([math.erf(v) for v in (x * math.sqrt(0.5)).reshape(-1)]).reshape(x.shape)
    return 0.5 * (1.0 + erf) + x * density


def _gelu_tanh(x: Doubles) -> Doubles:
    # g = x (1 + t) / 2, t = tanh(c (x + a x³)): g' = (1 + t) / 2 + x (1 - t²) c (1 + 3 a x²) / 2
    t = np.tanh(_GELU_TANH_SLOPE * (x + _GELU_TANH_CUBE * x**3))
    slope = _GELU_TANH_SLOPE * (1.0 + 3.0 * _GELU_TANH_CUBE * x * x)
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope


def _silu(x: Doubles) -> Doubles:
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


def _mish(x: Doubles) -> Doubles:
    # g = x t, t = tanh(softplus(x)): g' = t + x (1 - t²) σ(x)
    t = np.tanh(np.logaddexp(0.0, x))
    return t + x * (1.0 - t * t) * sigmoid(x)


def _hardswish(x: Doubles) -> Doubles:
    return np.where(x <= -3.0, 0.0, np.where(x >= 3.0, 1.0, x / 3.0 + 0.5))


def _elu(x: Doubles) -> Doubles:
    return np.exp(np.minimum(x, 0.0))


def _sigmoid_slope(x: Doubles) -> Doubles:
    s = sigmoid(x)
    return s * (1.0 - s)


def _tanh_slope(x: Doubles) -> Doubles:
    return 1.0 - np.tanh(x) ** 2


def _erf_slope(x: Doubles) -> Doubles:
    return 2.0 / math.sqrt(math.pi) * np.exp(-x * x)


def _softsign_slope(x: Doubles) -> Doubles:
    return 1.0 / (1.0 + np.abs(x)) ** 2


DERIVATIVES: dict[str, Derivative] = {
    "gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu, "mish": _mish,
    "hardswish": _hardswish, "elu": _elu, "softplus": sigmoid, "sigmoid": _sigmoid_slope,
    "tanh": _tanh_slope, "erf": _erf_slope, "softsign": _softsign_slope,
}

__all__ = ["DERIVATIVES", "Derivative", "Doubles", "sigmoid"]
