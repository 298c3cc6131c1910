from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from s2a_edge.pack.codecs import codec_for
from s2a_edge.pack.codecs.activations import DERIVATIVES
from s2a_edge.pack.codecs.codebook import Codebook, design
from s2a_edge.pack.codecs.derivative import WIDTHS, DerivativeCodec
from s2a_edge.pack.codecs.gradient_weights import REFERENCES, Weights, bin_centres

# Relative error over the reference distribution, as computed when the candidates were chosen,
# rounded up by a tenth: a change that costs accuracy must be made on purpose.
_ERROR_4 = {"gelu": 0.09, "gelu_tanh": 0.09, "silu": 0.064, "mish": 0.061, "elu": 0.022,
            "hardswish": 0.065, "softplus": 0.036, "sigmoid": 0.039, "tanh": 0.04, "erf": 0.035,
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


WIDTHS_OF = [(f, w) for f in REFERENCES for w in WIDTHS]


def _draws(function: str, count: int = 200_000) -> np.ndarray:
    reference = REFERENCES[function]
    normal = np.random.default_rng(0).standard_normal(count)
    return np.asarray(reference.mean + reference.deviation * normal)


@pytest.mark.parametrize(("function", "width"), WIDTHS_OF)
def test_every_level_lies_within_its_cell(function: str, width: int) -> None:
    # So no error exceeds the change of g' within one cell, but for what takes back the bias of
    # exact ends and of what adds up.
    codec = DerivativeCodec(function, width)
    x = np.linspace(-11.9, 11.9, 23801)
    slope, decoded = DERIVATIVES[function](x), codec.reference(x.astype(np.float32))
    assert np.isfinite(codec.levels).all()
    for level in np.unique(decoded):
        cell = slope[decoded == level]
        assert cell.min() - 0.02 <= level <= cell.max() + 0.02


@pytest.mark.parametrize("function", REFERENCES)
def test_error_over_the_reference_distribution(function: str) -> None:
    x = _draws(function)
    slope = DERIVATIVES[function](x)
    error = codec_for(f"derivative:{function}", 4, x.shape).reference(x.astype(np.float32)) - slope
    assert np.linalg.norm(error) / np.linalg.norm(slope) < _ERROR_4[function]


@pytest.mark.parametrize(("function", "width"), WIDTHS_OF)
def test_codes_are_unbiased(function: str, width: int) -> None:
    x = _draws(function)
    slope = DERIVATIVES[function](x)
    error = DerivativeCodec(function, width).reference(x.astype(np.float32)) - slope
    # Weighted by what adds up over a unit's tokens, so not exactly that of single values.
    assert abs(error.mean()) < 0.2 * np.sqrt(np.square(error).mean())


@pytest.mark.parametrize(("function", "width"), [(f, w) for f in ("gelu", "silu", "sigmoid")
                                                 for w in (1, 2, 3, 4)])
def test_in_every_cell_the_weighted_error_is_zero(function: str, width: int) -> None:
    weights = _measured(function)
    book = design(function, 1 << width, weights, exact_ends=False)
    x = bin_centres()
    codes = book.compander.codes(x, 1 << width)
    left = DERIVATIVES[function](x) - np.array(book.levels)[codes]
    zeros = Codebook(book.compander, (0.0,) * (1 << width))
    ours = weights.moment / zeros.error(function, weights)
    by_cell = np.bincount(codes, (ours @ left), 1 << width)
    # The reference has a fiftieth of the say.
    assert np.abs(by_cell).max() < 0.05 * np.abs(ours @ DERIVATIVES[function](x)).sum()


@pytest.mark.parametrize("width", [3, 4, 8])
@pytest.mark.parametrize("function", [f for f in REFERENCES if f != "softsign"])
def test_far_out_the_derivative_is_exact(function: str, width: int) -> None:
    fitted = DerivativeCodec(function, width, design(function, 1 << width, _measured(function)))
    for codec in (DerivativeCodec(function, width), fitted):
        decoded = codec.reference(np.array([-50.0, 50.0], np.float32))
        assert tuple(decoded.tolist()) == REFERENCES[function].ends


@pytest.mark.parametrize("function", REFERENCES)
def test_more_bits_are_closer(function: str) -> None:
    x = _draws(function, 20_000).astype(np.float32)
    slope = DERIVATIVES[function](x.astype(np.float64))
    errors = [float(np.square(DerivativeCodec(function, width).reference(x) - slope).sum())
              for width in (8, 4, 3, 2, 1)]
    assert errors == sorted(errors)
    assert errors[0] < errors[1] / 20 and errors[1] < errors[3] / 3


@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_hardswish_is_exact_outside_its_bend(width: int) -> None:
    x = np.array([-50.0, -3.01, 3.01, 50.0], np.float32)
    decoded = DerivativeCodec("hardswish", width).reference(x)
    assert decoded.tolist() == [0.0, 0.0, 1.0, 1.0]


def _measured(function: str, seed: int = 2) -> Weights:
    """Of 64 units with means of their own, narrower than the reference, and 400 tokens."""
    rng = np.random.default_rng(seed)
    units = rng.normal(-1, 0.7, 64)
    x = units + 0.4 * rng.standard_normal((400, 64))
    return Weights.of(x, rng.standard_normal(64) + rng.standard_normal((400, 64)))


@pytest.mark.parametrize("function", ["gelu", "silu", "softplus", "tanh"])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_codebook_fits_a_models_own_gradients(function: str, width: int) -> None:
    weights = _measured(function)
    fitted, usual = design(function, 1 << width, weights), design(function, 1 << width)
    assert fitted.error(function, weights) < usual.error(function, weights)
    other = _measured(function, seed=3)  # and those of other samples of the same kind
    assert fitted.error(function, other) < 1.25 * usual.error(function, other)
    assert DerivativeCodec(function, width, fitted).name.startswith(f"{function}{width}_fitted")


def test_the_error_of_a_codebook_is_that_of_the_bias_gradients() -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(-1, 1, (50, 30, 16)), rng.standard_normal((50, 30, 16))
    codec = DerivativeCodec("gelu", 3)
    slope = DERIVATIVES["gelu"](x)
    error = (dy * (codec.reference(x.astype(np.float32)) - slope)).sum((0, 1))
    true = (dy * slope).sum((0, 1))
    # Bins are 0.05 wide; a fiftieth of the weight is that of single values.
    assert codec.codebook.error("gelu", Weights.of(x, dy)) == pytest.approx(
        float(error @ error) / float(true @ true), rel=0.15)
    channels_first = Weights.of(np.moveaxis(x, -1, 1), np.moveaxis(dy, -1, 1), axis=1)
    np.testing.assert_allclose(channels_first.moment, Weights.of(x, dy).moment)


def test_units_that_are_always_off_decode_to_nearly_nothing() -> None:
    # Each error is small, but they add up over the tokens of a unit.
    x = np.random.default_rng(1).normal(-2.6, 0.3, (500, 40))
    weights = Weights.of(x, np.ones_like(x))
    decoded = DerivativeCodec("gelu", 2, design("gelu", 4, weights)).reference(
        x.astype(np.float32))
    slope = DERIVATIVES["gelu"](x)
    assert abs((decoded - slope).mean()) < 0.02 * abs(slope.mean())


def test_cells_without_any_value_have_sensible_levels() -> None:
    fitted = design("gelu", 16, Weights.of(np.full((10, 1), -1.0), np.ones((10, 1))))
    x = np.linspace(-6, 6, 500)
    codec = DerivativeCodec("gelu", 4, fitted)
    error = np.abs(codec.reference(x.astype(np.float32)) - DERIVATIVES["gelu"](x))
    assert error.max() < 0.35
