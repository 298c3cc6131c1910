"""Shapes and dtypes of new nodes, by ONNX's schemas and without."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import MICROSOFT, dtype_of, shape_of
from s2a_edge.pack.shape_inference import infer_outputs
from s2a_edge.spec.errors import InternalError

FLOAT = ir.DataType.FLOAT


def test_shapes_and_dtypes_are_known_at_once() -> None:
    g = GraphBuilder()
    x = g.input("x", FLOAT, (2, 3, 4))
    y = g.op("ReduceSum", x, g.constant([1]), keepdims=0)
    assert shape_of(y) == (2, 4)
    index = g.op("Cast", g.op("Greater", x, g.constant(0.0)), to=int(ir.DataType.UINT8))
    assert (shape_of(index), dtype_of(index)) == ((2, 3, 4), ir.DataType.UINT8)
    assert shape_of(g.op("Reshape", x, g.constant([0, -1]))) == (2, 12)
    parts = g.multi("Split", [x, g.constant([1, 3])], 2, axis=2)
    assert [shape_of(p) for p in parts] == [(2, 3, 1), (2, 3, 3)]


def test_a_wrong_node_fails_where_it_is_made() -> None:
    g = GraphBuilder()
    g.module = "blocks.0"
    x, y = g.input("x", FLOAT, (2, 3)), g.input("y", FLOAT, (4, 5))
    with pytest.raises(InternalError, match=r"MatMul in blocks\.0"):
        g.op("MatMul", x, y)
    with pytest.raises(InternalError, match="NoSuchOperator"):
        g.op("NoSuchOperator", x)


def test_a_shape_that_depends_on_data_is_refused() -> None:
    g = GraphBuilder()
    x, shape = g.input("x", FLOAT, (2, 3)), g.input("shape", ir.DataType.INT64, (2,))
    with pytest.raises(InternalError, match="static"):
        g.op("Reshape", x, shape)
    with pytest.raises(InternalError, match="static"):
        g.op("NonZero", x)


_EXTENT = st.integers(1, 3)


@given(st.lists(_EXTENT, max_size=2), st.lists(st.booleans(), min_size=2, max_size=2),
       st.booleans(), st.booleans(), _EXTENT, _EXTENT, _EXTENT)
def test_fused_matmul_has_the_shape_of_numpys_product(
        batch: list[int], ones: list[bool], ta: bool, tb: bool, m: int, k: int, n: int) -> None:
    a_batch = [1 if one else d for d, one in zip(batch, ones, strict=False)]
    a, b = [*a_batch, *((k, m) if ta else (m, k))], [*batch, *((n, k) if tb else (k, n))]
    left, right = np.zeros(a), np.zeros(b)
    product = (left.swapaxes(-1, -2) if ta else left) @ (right.swapaxes(-1, -2) if tb else right)
    g = GraphBuilder()
    y = g.op("FusedMatMul", g.input("a", FLOAT, a), g.input("b", FLOAT, b), domain=MICROSOFT,
             transA=int(ta), transB=int(tb))
    assert shape_of(y) == product.shape


def test_fused_matmul_of_other_inner_sizes_is_refused() -> None:
    g = GraphBuilder()
    with pytest.raises(InternalError, match="equal inner sizes"):
        g.op("FusedMatMul", g.input("a", FLOAT, (2, 3)), g.input("b", FLOAT, (3, 2)),
             domain=MICROSOFT, transB=1)


def test_optional_outputs_without_a_name_need_no_shape() -> None:
    g = GraphBuilder()
    x = g.input("x", FLOAT, (2, 6))
    node = ir.Node("", "LayerNormalization", [x, g.constant(np.ones(6, np.float32))],
                   num_outputs=3)
    node.outputs[0].name, node.outputs[1].name, node.outputs[2].name = "y", "", "rstd"
    infer_outputs(node)
    assert shape_of(node.outputs[0]) == (2, 6)
    assert shape_of(node.outputs[2]) == (2, 1)


@pytest.mark.parametrize(("size", "kernel", "stride", "pad", "expected"), [
    (3, 2, 2, 1, 2), (3, 2, 3, 0, 1), (5, 2, 2, 1, 3), (6, 3, 2, 0, 3), (4, 3, 4, 0, 1)])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_no_window_starts_behind_the_map(op: str, size: int, kernel: int, stride: int, pad: int,
                                         expected: int) -> None:
    """Sizes as the runtime and PyTorch have them with ``ceil_mode``."""
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (1, 1, size))
    y = g.op(op, x, kernel_shape=[kernel], strides=[stride], pads=[pad, pad], ceil_mode=1)
    assert shape_of(y) == (1, 1, expected)
