from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from s2a_edge.pack.codecs import codec_for
from s2a_edge.pack.codecs.activations import DERIVATIVES
from s2a_edge.pack.codecs.codebook import REFERENCES, Histogram
from s2a_edge.pack.codecs.derivative import WIDTHS, DerivativeCodec

# Relative error over the reference distribution, as computed when the candidates were chosen,
# rounded up by a tenth: a change that costs accuracy must be made on purpose.
_ERROR_4 = {"gelu": 0.09, "gelu_tanh": 0.09, "silu": 0.064, "mish": 0.061, "elu": 0.022,
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


WIDTHS_OF = [(f, w) for f in REFERENCES for w in WIDTHS]


def _draws(function: str, count: int = 200_000) -> np.ndarray:
    reference = REFERENCES[function]
    normal = np.random.default_rng(0).standard_normal(count)
    return np.asarray(reference.mean + reference.deviation * normal)


@pytest.mark.parametrize(("function", "width"), WIDTHS_OF)
def test_every_level_lies_within_its_cell(function: str, width: int) -> None:
    # So no error exceeds the change of g' within one cell. The shift that takes back the bias of
    # the exact ends may leave a cell by a little.
    codec = DerivativeCodec(function, width)
    x = np.linspace(-11.9, 11.9, 23801)
    slope, decoded = DERIVATIVES[function](x), codec.reference(x.astype(np.float32))
    assert np.isfinite(codec.levels).all()
    for level in np.unique(decoded):
        cell = slope[decoded == level]
        assert cell.min() - 5e-3 <= level <= cell.max() + 5e-3


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
    # The bins of the histogram are 0.02 wide; the draws are as far from their mean.
    assert abs(error.mean()) < 5e-3 * np.linalg.norm(slope) / x.size**0.5


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("function", [f for f in REFERENCES if f != "softsign"])
def test_far_out_the_derivative_is_exact(function: str, width: int) -> None:
    measured = (0.4 * np.random.default_rng(2).standard_normal(5000) - 2).astype(np.float32)
    default = DerivativeCodec(function, width)
    for codec in (default, default.fit(measured)):
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
    if width in (4, 8):
        assert decoded.tolist() == [0.0, 0.0, 1.0, 1.0]
    else:  # means of cells whose derivative is 0 and 1
        np.testing.assert_allclose(decoded, [0, 0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_codebook_fits_a_models_own_values(width: int) -> None:
    x = (0.4 * np.random.default_rng(2).standard_normal(50_000) - 2).astype(np.float32)
    slope = DERIVATIVES["gelu"](x.astype(np.float64))
    default, fitted = (codec_for("derivative:gelu", width, x.shape, samples)
                       for samples in (None, x))
    errors = [float(np.square(c.reference(x) - slope).sum()) for c in (default, fitted)]
    assert errors[1] < errors[0]
    assert fitted.name == f"gelu{width}_fitted"


def test_the_weight_decides_where_cells_are_fine() -> None:
    x = np.linspace(-4, 4, 4001)
    slope = DERIVATIVES["gelu"](x)

    def error(weighted: np.ndarray, judged: np.ndarray) -> float:
        codec = DerivativeCodec("gelu", 3).fit(Histogram.of(x, weighted))
        return float(judged @ np.square(codec.reference(x.astype(np.float32)) - slope))

    left, right = (np.where(x < 0, a, b) for a, b in ((1.0, 0.01), (0.01, 1.0)))
    assert error(left, left) < error(right, left)
    assert error(right, right) < error(left, right)


def test_unseen_cells_keep_sensible_levels() -> None:
    fitted = DerivativeCodec("gelu", 8).fit(np.full(10, -1.0, np.float32))
    x = np.linspace(-6, 6, 500)
    error = np.abs(fitted.reference(x.astype(np.float32)) - DERIVATIVES["gelu"](x))
    assert error.max() < 0.2
