"""What half-precision formats hold, and which operators compute in them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import MICROSOFT
from s2a_edge.pack.half.formats import BF16, FP16, HALVES, Half

_HALVES = [FP16, BF16]


@pytest.mark.parametrize("half", _HALVES, ids=["fp16", "bf16"])
def test_limits_are_those_of_the_type(half: Half) -> None:
    kind = half.dtype.numpy()
    largest = np.float32(half.largest)
    assert float(largest.astype(kind)) == half.largest
    with np.errstate(over="ignore"):
        assert not np.isfinite(np.float32(half.largest * 1.005).astype(kind).astype(np.float32))
    # At the smallest normal number it still has its bits.
    smallest = np.float32(half.smallest)
    assert float(smallest.astype(kind)) == half.smallest
    assert float((smallest * np.float32(1 + 2.0**-7)).astype(kind)) == half.smallest * (1 + 2.0**-7)
    # What stands for infinity stays finite beside any activation.
    assert np.isfinite((np.float32(-half.endless) - np.float32(half.endless * 0.9)).astype(kind))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_a_constant_that_is_taken_is_held_to_11_bits(values: list[float]) -> None:
    array = np.array(values, np.float32)
    taken = FP16.constant(array)
    if taken is None:
        assert 0 < np.abs(array).max() < FP16.smallest
        return
    error = np.abs(taken.astype(np.float16).astype(np.float32) - array).max()
    assert error <= np.abs(array).max() * 2.0**-11


@pytest.mark.parametrize("values", [[1e-6, 1e-7], [7e4, 1.0], [2.0**-100], [np.nan]])
def test_a_constant_that_would_suffer_is_not_taken(values: list[float]) -> None:
    assert FP16.constant(np.array(values, np.float32)) is None


@pytest.mark.parametrize("half", _HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("lowest", [-np.inf, -3.4028235e38, -1e9])
def test_a_mask_becomes_a_finite_number(half: Half, lowest: float) -> None:
    taken = half.constant(np.array([0.0, lowest], np.float32))
    assert taken is not None and taken.tolist() == [0.0, -np.float32(half.endless)]
    assert half.clips(np.array([lowest])) and not half.clips(np.array([-100.0]))


def test_products_and_their_kin_compute_in_half_and_logarithms_do_not() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (2, 2))
    made = {op: g.op(op, *[x] * count).producer()
            for op, count in (("MatMul", 2), ("Gelu", 1), ("Softmax", 1), ("Exp", 1), ("Log", 1))}
    product = g.op("FusedMatMul", x, x, domain=MICROSOFT).producer()
    for half in HALVES.values():
        assert product is not None and half.computes(product)
        assert [op for op, node in made.items() if node is not None and half.computes(node)] == [
            "MatMul", "Gelu", "Softmax"]


def test_bfloat16_has_fewer_kernels() -> None:
    assert BF16.following < FP16.following and BF16.products < FP16.products
    assert ("", "Conv") not in BF16.products  # before opset 22
