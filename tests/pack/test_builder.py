"""Names, constants and marks of the graph builder."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import CONSTANT_KEY, KIND_KEY, MICROSOFT, dtype_of, module_of
from s2a_edge.spec.errors import InternalError

FLOAT = ir.DataType.FLOAT


def test_names_are_unique_whatever_is_asked_for() -> None:
    g = GraphBuilder(taken=["Neg", "n_Neg_1"])
    x = g.input("Neg_1", FLOAT, (2,))
    for _ in range(5):
        x = g.op("Neg", x)
    names = [v.name for n in g.nodes for v in n.outputs] + [n.name for n in g.nodes]
    assert len(set(names)) == 10
    assert not {"Neg", "Neg_1", "n_Neg_1"} & set(names)


def test_equal_constants_are_one_initializer() -> None:
    g = GraphBuilder()
    assert g.constant([1, 2]) is g.constant(np.array([1, 2], np.int64))
    assert g.constant(1.0) is g.constant(np.asarray(1.0, np.float32))
    assert len(g.initializers) == 2
    assert all(CONSTANT_KEY in v.metadata_props for v in g.initializers.values())


@pytest.mark.parametrize(("one", "other"), [
    (np.float32(0.0), np.float32(-0.0)),
    (np.float32(1.0), np.float64(1.0)),
    (np.array(1.0, np.float32), np.array([1.0], np.float32)),
    (np.array(0, np.int32), np.array(0, np.float32)),
])
def test_different_constants_stay_apart(one: np.ndarray, other: np.ndarray) -> None:
    g = GraphBuilder()
    assert g.constant(np.asarray(one)) is not g.constant(np.asarray(other))


def test_plain_numbers_get_the_dtypes_that_attributes_need() -> None:
    g = GraphBuilder()
    assert dtype_of(g.constant(1)) == ir.DataType.INT64
    assert dtype_of(g.constant(1.0)) == FLOAT
    assert dtype_of(g.constant([0, 1])) == ir.DataType.INT64


def test_an_initializer_needs_a_free_name() -> None:
    g = GraphBuilder(taken=["w"])
    with pytest.raises(InternalError, match="initializer w"):
        g.initializer("w", np.zeros(1, np.float32))


def test_module_and_kind_are_stamped_on_new_nodes() -> None:
    g = GraphBuilder()
    g.module, g.kind = "head", "gradients"
    y = g.op("Neg", g.input("x", FLOAT, (1,)))
    assert y.metadata_props[KIND_KEY] == "gradients"
    node = y.producer()
    assert node is not None and module_of(node) == "head"


def test_models_have_the_opset_and_ir_version_that_run_low_bit_types() -> None:
    g = GraphBuilder()
    x = g.input("x", FLOAT, (2,))
    proto = ir.to_proto(model_of([x], [g.op("Neg", x)], g, "m"))
    assert proto.ir_version == 10
    assert {o.domain: o.version for o in proto.opset_import} == {"": 21, MICROSOFT: 1}
