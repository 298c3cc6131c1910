from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from s2a_edge.pack.codecs import codec_for
from s2a_edge.pack.codecs.activations import DERIVATIVES
from s2a_edge.pack.codecs.derivative import COMPANDERS, DerivativeCodec

# Relative error over the reference distribution, as computed when the companders were chosen,
# rounded up by a tenth: a change that costs accuracy must be made on purpose.
_ERROR_4 = {"gelu": 0.064, "gelu_tanh": 0.064, "silu": 0.051, "mish": 0.048, "elu": 0.022,
            "hardswish": 0.065, "softplus": 0.036, "sigmoid": 0.035, "tanh": 0.04, "erf": 0.035,
            "softsign": 0.048}


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x])


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


# The activations themselves, as ONNX defines them.
_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi)
                                                  * (x + 0.044715 * x**3))),
    "silu": lambda x: x * _logistic(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": _logistic,
    "tanh": np.tanh,
    "erf": _erf,
    "softsign": lambda x: x / (1 + np.abs(x)),
}


@pytest.mark.parametrize("function", DERIVATIVES)
def test_derivatives_are_slopes(function: str) -> None:
    # Off the bends at -3, 0 and 3. A central difference in float64 is good to about h**2.
    x, h = np.linspace(-7.97, 7.97, 200), 1e-5
    slope = (_FUNCTIONS[function](x + h) - _FUNCTIONS[function](x - h)) / (2 * h)
    np.testing.assert_allclose(DERIVATIVES[function](x), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("function", COMPANDERS)
def test_every_level_lies_within_its_cell(function: str, width: int) -> None:
    # So no error exceeds the change of g' within one cell.
    codec = DerivativeCodec(function, width)
    x = np.linspace(-11.9, 11.9, 23801)
    slope, decoded = DERIVATIVES[function](x), codec.reference(x.astype(np.float32))
    assert np.isfinite(codec.levels).all()
    for level in np.unique(decoded):
        cell = slope[decoded == level]
        assert cell.min() - 1e-3 <= level <= cell.max() + 1e-3


@pytest.mark.parametrize("function", COMPANDERS)
def test_error_over_the_reference_distribution(function: str) -> None:
    compander = COMPANDERS[function]
    draws = np.random.default_rng(0).standard_normal(200_000)
    x = compander.mean + compander.deviation * draws
    slope = DERIVATIVES[function](x)
    error = codec_for(f"derivative:{function}", 4, x.shape).reference(x.astype(np.float32)) - slope
    assert np.linalg.norm(error) / np.linalg.norm(slope) < _ERROR_4[function]


@pytest.mark.parametrize("function", COMPANDERS)
def test_more_bits_are_closer(function: str) -> None:
    x = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    slope = DERIVATIVES[function](x.astype(np.float64))
    errors = [np.abs(DerivativeCodec(function, width).reference(x) - slope).mean()
              for width in (8, 4, 2)]
    assert errors[0] < errors[1] / 4 < errors[2] / 8


@pytest.mark.parametrize("width", [2, 4, 8])
def test_hardswish_is_exact_outside_its_bend(width: int) -> None:
    x = np.array([-50.0, -3.01, 3.01, 50.0], np.float32)
    decoded = DerivativeCodec("hardswish", width).reference(x)
    assert decoded.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_levels_fit_a_models_own_values() -> None:
    x = (0.4 * np.random.default_rng(2).standard_normal(50_000) - 2).astype(np.float32)
    slope = DERIVATIVES["gelu"](x.astype(np.float64))
    default, fitted = (codec_for("derivative:gelu", 2, x.shape, samples) for samples in (None, x))
    errors = [float(np.square(c.reference(x) - slope).sum()) for c in (default, fitted)]
    assert errors[1] < errors[0]
    assert fitted.name == "gelu2_fitted"


def test_fitting_keeps_the_level_of_an_unseen_cell() -> None:
    default = DerivativeCodec("gelu", 4)
    fitted = default.fit(np.full(10, -1.0, np.float32))
    changed = np.flatnonzero(fitted.levels != default.levels)
    assert changed.size == 1
    assert fitted.levels[changed[0]] == pytest.approx(
        DERIVATIVES["gelu"](np.array([-1.0]))[0], rel=1e-6)
