from __future__ import annotations

import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.plan import plan_memory
from s2a_edge.spec.errors import InternalError

TYPES = ir.DataType


def cast_chain(first: ir.DataType, second: ir.DataType, third: ir.DataType) -> ir.Model:
    b = GraphBuilder()
    x = b.input("x", first, [4])
    y = b.op("Cast", b.op("Cast", x, to=int(second)), to=int(third))
    return model_of([x], [y], b, "casts")


@pytest.mark.parametrize(("op_type", "instead"), [("HardSwish", "HardSigmoid"), ("Mish", "Tanh")])
def test_operators_without_a_kernel_are_refused(op_type: str, instead: str) -> None:
    b = GraphBuilder()
    x = b.input("x", TYPES.FLOAT, [4])
    model = model_of([x], [b.op(op_type, x)], b, "net")
    with pytest.raises(InternalError, match=f"{op_type}.*{instead}"):
        plan_memory(model)


@pytest.mark.parametrize("types", [
    (TYPES.BOOL, TYPES.UINT8, TYPES.FLOAT),
    (TYPES.UINT8, TYPES.INT32, TYPES.FLOAT),
    (TYPES.INT8, TYPES.FLOAT, TYPES.FLOAT16),
    (TYPES.FLOAT16, TYPES.FLOAT, TYPES.FLOAT16),
    (TYPES.FLOAT, TYPES.FLOAT, TYPES.INT32),
])
def test_casts_that_the_runtime_drops_are_refused(types: tuple[ir.DataType, ...]) -> None:
    with pytest.raises(InternalError, match="drops"):
        plan_memory(cast_chain(*types))


@pytest.mark.parametrize("types", [
    (TYPES.FLOAT, TYPES.UINT8, TYPES.FLOAT),
    (TYPES.FLOAT, TYPES.FLOAT16, TYPES.FLOAT),
    (TYPES.INT64, TYPES.UINT8, TYPES.FLOAT),
    (TYPES.INT32, TYPES.FLOAT, TYPES.INT32),
])
def test_casts_that_lose_something_are_kept(types: tuple[ir.DataType, ...]) -> None:
    assert plan_memory(cast_chain(*types)).plan.node_count == 2


def test_a_cast_with_another_reader_is_kept() -> None:
    b = GraphBuilder()
    x = b.input("x", TYPES.BOOL, [4])
    codes = b.op("Cast", x, to=int(TYPES.UINT8))
    y = b.op("Cast", codes, to=int(TYPES.FLOAT))
    z = b.op("Equal", codes, codes)
    assert plan_memory(model_of([x], [y, z], b, "casts")).plan.node_count == 3
