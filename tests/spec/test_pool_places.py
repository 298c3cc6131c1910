"""Which nodes may write over what in the pool."""

from __future__ import annotations

import pytest

from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.onnx_facts import ValueFacts
from s2a_edge.spec.onnx_nodes import NodePorts
from s2a_edge.spec.pool_places import Place, check_lifetimes, places_within
from s2a_edge.spec.pool_ports import pool_port

A, B, C = Place(0, 64), Place(64, 128), Place(32, 96)
GIVEN = ("x", "s")  # a tensor, a sequence


def node(op_type: str, inputs: str, outputs: str, domain: str = "") -> NodePorts:
    return NodePorts(domain, op_type, tuple(inputs.split()), tuple(outputs.split()))


FIRST = node("Conv", "x", "a")
GOOD = {
    "apart": ([FIRST, node("Conv", "a", "b"), node("Add", "a b", "y")], {"a": A, "b": B}),
    "after the last reader": ([FIRST, node("Conv", "a", "y"), node("Conv", "y", "b")],
                              {"a": A, "b": C}),
    "elementwise, exactly over an operand": ([FIRST, node("Add", "x a", "b")], {"a": A, "b": A}),
    "over an operand's view": ([FIRST, node("Reshape", "a x", "v"), node("Relu", "v", "b")],
                               {"a": A, "b": A}),
    "over what an output was copied from": ([FIRST, node("Reshape", "a x", "out"),
                                             node("Conv", "x", "b"), node("Relu", "out", "y")],
                                            {"a": A, "b": A}),
    "in place of the first": ([FIRST, node("ScatterElements", "a x x", "b")], {"a": A, "b": A}),
}  # fmt: skip
BAD = {
    "read later": ([FIRST, node("Conv", "x", "b"), node("Conv", "a", "y")], {"a": A, "b": C}),
    "a view read later": ([FIRST, node("Reshape", "a", "v"), node("Conv", "x", "b"),
                           node("Conv", "v", "y")], {"a": A, "b": A}),
    "a view of a view": ([FIRST, node("Reshape", "a", "v"), node("Identity", "v", "w"),
                          node("Conv", "x", "b"), node("Conv", "w", "y")], {"a": A, "b": A}),
    "kept as it is": ([FIRST, node("Optional", "a", "o"), node("OptionalGetElement", "o", "v"),
                       node("Gather", "x v", "b")], {"a": A, "b": A}),
    "in a sequence": ([FIRST, node("SequenceInsert", "s a", "t"), node("SequenceAt", "t x", "v"),
                       node("Gather", "x v", "b")], {"a": A, "b": A}),
    "an operand": ([FIRST, node("Gather", "x a", "b")], {"a": A, "b": A}),
    "half of an operand": ([FIRST, node("Relu", "a", "b")], {"a": A, "b": C}),
    "not the operand in place": ([FIRST, node("ScatterElements", "x a x", "b")],
                                 {"a": A, "b": A}),
    "of another domain": ([FIRST, node("Add", "x a", "b", "s2a.edge")], {"a": A, "b": A}),
    "of three operands": ([FIRST, node("Max", "x a x", "b")], {"a": A, "b": A}),
    "another result": ([node("Split", "x", "a b")], {"a": A, "b": C}),
    "before it is there": ([node("Conv", "a", "b"), FIRST], {"a": A, "b": B}),
    "twice": ([FIRST, node("Conv", "x", "a")], {"a": A}),
    "never": ([FIRST], {"a": A, "b": B}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_sound_places_are_taken(name: str) -> None:
    nodes, places = GOOD[name]
    check_lifetimes("train.onnx", places, nodes, GIVEN, ("out", "y"))


@pytest.mark.parametrize("name", BAD)
def test_places_in_use_are_refused(name: str) -> None:
    nodes, places = BAD[name]
    with pytest.raises(BundleError):
        check_lifetimes("train.onnx", places, nodes, GIVEN, ("y",))


@pytest.mark.parametrize(("offset", "dtype", "shape"), [
    (2**30, "float32", (-(2**40),)), (32, "float32", (4,)), (4096, "float32", (1,)),
    (0, "string", (1,)), (0, "float32", None), (0, "float32", (1025,)), (0, "float32", (0,)),
])  # fmt: skip
def test_a_bundle_cannot_name_such_a_place(
    offset: int, dtype: str, shape: tuple[int, ...] | None
) -> None:
    with pytest.raises(BundleError):
        places_within("train.onnx", [ValueFacts(pool_port(offset, 0), dtype, shape)], 4096)


def test_a_place_inside_of_the_pool_is_taken() -> None:
    places_within("train.onnx", [ValueFacts(pool_port(64, 0), "float32", (1008,))], 4096)
