"""What values and nodes say: shape, dtype, bytes, module."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import MODULE_KEY, dtype_of, module_of, nbytes_of, shape_of
from s2a_edge.spec.errors import InternalError

FLOAT = ir.DataType.FLOAT


def test_unknown_shape_or_dtype_is_our_bug() -> None:
    with pytest.raises(InternalError, match="static shape"):
        shape_of(ir.Value(name="v", shape=ir.Shape(["batch", 3])))
    with pytest.raises(InternalError, match="dtype"):
        dtype_of(ir.Value(name="v"))


@pytest.mark.parametrize(("dtype", "shape", "expected"), [
    (FLOAT, (2, 3), 24), (FLOAT, (), 4), (ir.DataType.UINT4, (5,), 3),
    (ir.DataType.INT4, (4,), 2), (ir.DataType.BFLOAT16, (3,), 6), (ir.DataType.BOOL, (7,), 7),
])
def test_bytes_of_a_value(dtype: ir.DataType, shape: tuple[int, ...], expected: int) -> None:
    assert nbytes_of(GraphBuilder().input("x", dtype, shape)) == expected


@pytest.mark.parametrize(("metadata", "expected"), [
    ({MODULE_KEY: "a.b"}, "a.b"),
    ({"pkg.torch.onnx.name_scopes": "['', 'blocks', 'blocks.0', 'linear']"}, "blocks.0"),
    ({"pkg.torch.onnx.name_scopes": "['', 'linear']"}, "node7"),
    ({}, "node7"),
])
def test_module_names(metadata: dict[str, str], expected: str) -> None:
    assert module_of(ir.Node("", "Neg", [], name="node7", metadata_props=metadata)) == expected
