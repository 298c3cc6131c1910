"""Copies of nodes and initializers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.copies import copy_initializer, copy_node, step_marks
from s2a_edge.pack.graph import FLOAT32_KEY, FOLDED_KEY, MODULE_KEY, dtype_of, shape_of

_FLOAT = ir.DataType.FLOAT


def _norm() -> ir.Node:
    """A node whose second output is left out."""
    g = GraphBuilder()
    x = g.input("x", _FLOAT, (2, 6))
    node = ir.Node("", "LayerNormalization", [x, g.constant(np.ones(6, np.float32))],
                   [ir.AttrFloat32("epsilon", 0.5)], num_outputs=3, name="norm",
                   metadata_props={MODULE_KEY: "blocks.0", "pkg.torch.note": "x"})
    node.outputs[0].name, node.outputs[1].name, node.outputs[2].name = "y", "", "rstd"
    for value, shape in ((node.outputs[0], (2, 6)), (node.outputs[2], (2, 1))):
        value.type, value.shape = ir.TensorType(_FLOAT), ir.Shape(shape)
    return node


def test_a_copy_reads_other_operands_and_gives_the_same() -> None:
    node, other = _norm(), ir.Value(name="other")
    made = copy_node(node, [other, node.inputs[1]])
    assert list(made.inputs) == [other, node.inputs[1]]
    assert made.attributes.get_float("epsilon") == 0.5
    assert (made.name, [v.name for v in made.outputs]) == ("norm", ["y", "", "rstd"])
    assert [shape_of(made.outputs[i]) for i in (0, 2)] == [(2, 6), (2, 1)]
    assert made.metadata_props == node.metadata_props


def test_what_has_no_name_gets_none() -> None:
    made = copy_node(_norm(), [None, None], rename=lambda name: f"{name}_again")
    assert (made.name, [v.name for v in made.outputs]) == (
        "norm_again", ["y_again", "", "rstd_again"])


def test_a_copy_in_another_type_leaves_the_first_as_it_is() -> None:
    node = _norm()
    made = copy_node(node, list(node.inputs))
    made.outputs[0].dtype = ir.DataType.FLOAT16
    assert dtype_of(node.outputs[0]) == _FLOAT


def test_a_step_keeps_module_and_precision_of_a_node() -> None:
    node = _norm()
    assert step_marks(node) == {MODULE_KEY: "blocks.0"}
    node.metadata_props[FLOAT32_KEY] = "1"
    made = copy_node(node, list(node.inputs), marks=step_marks(node))
    assert made.metadata_props == {MODULE_KEY: "blocks.0", FLOAT32_KEY: "1"}


def test_an_initializers_copy_has_its_data_and_marks() -> None:
    g = GraphBuilder()
    first = g.initializer("w", np.arange(3, dtype=np.float32))
    first.metadata_props[FOLDED_KEY] = "computed"
    for made, name in ((copy_initializer(first), "w"), (copy_initializer(first, "v"), "v")):
        assert made is not first and made.name == name
        assert made.const_value is first.const_value
        assert (shape_of(made), dtype_of(made)) == ((3,), _FLOAT)
        assert made.metadata_props == {FOLDED_KEY: "computed"}
