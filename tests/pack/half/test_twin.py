"""The twin computes the numbers of the graph in half: against numpy, and against the runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.graph import dtype_of
from s2a_edge.pack.half.convert import half_model
from s2a_edge.pack.half.formats import BF16, FP16, HALVES, Half
from s2a_edge.pack.half.twin import float32_twin
from tests.pack.compiled import run
from tests.pack.half.steps import feeds, gradients, relative_error, step

_FLOAT = ir.DataType.FLOAT


def _rounded(values: np.ndarray, half: Half) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).astype(half.dtype.numpy()).astype(np.float32)


@pytest.mark.parametrize("half", [FP16, BF16], ids=["fp16", "bf16"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-24, 17))
def test_every_value_is_rounded_once(half: Half, seed: int, exponent: int) -> None:
    """y = gelu-free chain (x W + b) · c - x W, each step rounded to the format, by numpy."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((4, 8)) * 2.0**exponent).astype(np.float32)
    w, b, c = (rng.standard_normal(s).astype(np.float32) for s in ((8, 8), (8,), (8,)))
    g = GraphBuilder()
    operand = g.input("x", _FLOAT, (4, 8))
    product = g.op("MatMul", operand, g.constant(w))
    y = g.op("Sub", g.op("Mul", g.op("Add", product, g.constant(b)), g.constant(c)), product)
    y.name = "y"
    twin = float32_twin(half_model(model_of([operand], [y], g, "chain"), half), half)
    w, b, c, short = (_rounded(v, half) for v in (w, b, c, x))
    with np.errstate(over="ignore", invalid="ignore"):
        p = _rounded(short @ w, half)
        expected = _rounded(_rounded(_rounded(p + b, half) * c, half) - p, half)
    got = run(twin, {"x": x})["y"]
    # Products are summed in another order, which may round to the neighbour.
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    assert same.mean() > 0.9
    finite = np.isfinite(expected) & np.isfinite(got)
    scale = np.abs(np.where(np.isfinite(p), p, 0)).max(initial=1.0) + 4
    assert np.abs(np.where(finite, got - expected, 0)).max() <= scale * 2.0**-6


@pytest.mark.parametrize("precision", list(HALVES))
@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_a_twin_is_float32_of_the_same_ports(name: str, precision: str) -> None:
    half, model = HALVES[precision], step(name, precision).steps[4].model
    twin = float32_twin(model, half)
    check_emitted(twin)
    for ours, theirs in ((twin.graph.inputs, model.graph.inputs),
                         (twin.graph.outputs, model.graph.outputs)):
        assert [(v.name, v.dtype, v.shape) for v in ours] == [
            (v.name, v.dtype, v.shape) for v in theirs]
    for node in twin.graph:
        assert node.op_type == "Cast" or all(dtype_of(v) != half.dtype for v in node.outputs
                                             if v.name)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
@pytest.mark.parametrize("bits", [4, 32])
def test_the_emitted_float16_graph_itself_computes_as_its_twin(name: str, bits: int) -> None:
    """The CPU provider runs float16 nodes between casts of its own, and rounds less often."""
    model = step(name, "fp16", bits=bits).steps[4].model
    given_ = feeds(name)
    exact = gradients(name, step(name, "fp32", bits=bits).steps[4].model, given_)
    runtime = gradients(name, model, given_)
    twin = gradients(name, float32_twin(model, FP16), given_)
    assert relative_error(twin, runtime) < 3e-3
    assert relative_error(runtime, exact) < relative_error(twin, exact) < 4e-3
