"""Softmax attention: where it is found, and that recomputed probabilities are the forward's."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.attention import attention_chains
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.coverage import gradient_values
from s2a_edge.pack.differentiate import vector_jacobian_product
from s2a_edge.pack.graph import MICROSOFT
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.saving import SavedValue
from tests.pack.compiled import Arrays, compiled, run

RECOMPUTE = Precision(8, "recompute")
HEADS = (2, 3, 5, 4)  # [B, H, T, d]


def _attention(g: GraphBuilder, *, fused: bool = True, mask: bool = False, scale: bool = False,
               made: bool = False, chosen: bool = False, windows: bool = False,
               ) -> tuple[list[ir.Value], ir.Value]:
    """softmax(q kᵀ) v; with ``made``, of activations instead of graph inputs."""
    inputs = [g.input(n, ir.DataType.FLOAT, HEADS) for n in "qkv"]
    q, k, v = [g.op("Tanh", x) for x in inputs] if made else inputs
    if fused:
        s = g.op("FusedMatMul", q, k, domain=MICROSOFT, transB=1)
    else:
        s = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if scale:
        s = g.op("Mul", g.constant(0.5), s)
    if mask:
        rng = np.random.default_rng(1)
        s = g.op("Add", s, g.initializer("mask", rng.standard_normal((5, 5)).astype(np.float32)))
    if chosen:
        s = g.op("Where", g.initializer("kept", np.eye(5) < 1), s, g.constant(-1e4))
    if windows:
        s = g.op("Reshape", s, g.constant([1, 2, 3, 5, 5]))
        s = g.op("Add", s, g.initializer("shift", np.eye(5, dtype=np.float32)))
        s = g.op("Reshape", s, g.constant([2, 3, 5, 5]))
    return inputs, g.op("MatMul", g.op("Softmax", s, axis=-1), v)


def _chains(g: GraphBuilder, inputs: list[ir.Value], out: ir.Value, precision: Precision) -> int:
    flowing = gradient_values(g.nodes, inputs, [out])
    return len(attention_chains(g.nodes, flowing, precision).by_softmax)


@pytest.mark.parametrize("form", [{}, {"fused": False}, {"mask": True}, {"scale": True},
                                  {"mask": True, "scale": True}, {"chosen": True},
                                  {"windows": True}])
def test_chains_are_found_in_every_spelling(form: dict[str, bool]) -> None:
    g = GraphBuilder()
    inputs, out = _attention(g, **form)
    assert _chains(g, inputs, out, RECOMPUTE) == 1


def test_the_policy_decides_by_tokens_and_width() -> None:
    g = GraphBuilder()
    inputs, out = _attention(g)
    assert _chains(g, inputs, out, Precision(4, "auto")) == 0  # 5 tokens, heads of 4
    assert _chains(g, inputs, out, Precision(8, "auto")) == 1
    assert _chains(g, inputs, out, Precision(8, "store")) == 0


def test_a_softmax_that_is_no_attention_is_left_alone() -> None:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, HEADS)
    assert _chains(g, [x], g.op("Softmax", g.op("Relu", x), axis=-1), RECOMPUTE) == 0


@pytest.mark.parametrize("attention", ["store", "recompute"])
def test_a_mask_from_the_inputs_is_kept_once_and_reused(attention: Literal["store", "recompute"],
                                                        ) -> None:
    """The mask of a text: no gradient reaches it, and it is not among the saved values."""
    g = GraphBuilder()
    inputs = [g.input(n, ir.DataType.FLOAT, HEADS) for n in "qkv"]
    ids = g.input("ids", ir.DataType.INT64, (2, 1, 1, 5))
    mask = g.op("Mul", g.op("Cast", ids, to=int(ir.DataType.FLOAT)), g.constant(-1e4))
    s = g.op("Add", g.op("FusedMatMul", *inputs[:2], domain=MICROSOFT, transB=1), mask)
    out = g.op("MatMul", g.op("Softmax", s, axis=-1), inputs[2])
    step = vector_jacobian_product(g.nodes, [*inputs, ids], [out], Precision(32, attention))
    assert {v.kind for v in step.saved} == {"probability"}  # q, k and v are inputs
    assert sum(n.op_type == "Softmax" for n in step.model.graph) == (
        2 if attention == "recompute" else 1)
    assert sum(n.op_type == "Cast" for n in step.model.graph) == 1
    rng = np.random.default_rng(3)
    feeds = {n: rng.standard_normal(HEADS).astype(np.float32) for n in (*"qkv", "dy_0")}
    got = run(step.model, {**feeds, "ids": np.array([0, 0, 0, 1, 1]) * np.ones((2, 1, 1, 1), int)})
    assert not got["d_k"][:, :, 3:].any() and got["d_k"][:, :, :3].any()


def test_a_mask_that_trains_keeps_probabilities_stored() -> None:
    g = GraphBuilder()
    q, k, m = (g.input(n, ir.DataType.FLOAT, s) for n, s in
               (("q", HEADS), ("k", HEADS), ("m", (5, 5))))
    s = g.op("FusedMatMul", q, k, domain=MICROSOFT, transB=1)
    out = g.op("Softmax", g.op("Add", s, g.op("Tanh", m)), axis=-1)
    assert _chains(g, [q, k, m], out, RECOMPUTE) == 0


def test_frozen_queries_keep_probabilities_stored() -> None:
    g = GraphBuilder()
    inputs, out = _attention(g)
    assert _chains(g, inputs[1:], out, RECOMPUTE) == 0


def _vjp(precision: Precision, *, made: bool, **form: bool,
         ) -> tuple[tuple[SavedValue, ...], Arrays, ir.Model]:
    g = GraphBuilder()
    inputs, out = _attention(g, made=made, **form)
    step = vector_jacobian_product(g.nodes, inputs, [out], precision)
    rng = np.random.default_rng(2)
    feeds = {n: rng.standard_normal(HEADS).astype(np.float32) for n in (*"qkv", "dy_0")}
    return step.saved, run(step.model, feeds), step.model


@pytest.mark.parametrize("made", [False, True], ids=["inputs", "activations"])
@pytest.mark.parametrize("form", [{}, {"fused": False}, {"mask": True, "scale": True},
                                  {"chosen": True, "windows": True}])
def test_recomputed_gradients_are_the_stored_ones(form: dict[str, bool], made: bool) -> None:
    """With nothing compressed both ways run the same operators on the same numbers."""
    saved, recomputed, model = _vjp(Precision(32, "recompute"), made=made, **form)
    _, stored, _ = _vjp(Precision(32, "store"), made=made, **form)
    assert [s.codec for s in saved if s.kind == "probability"] == ["recompute"]
    assert all(s.stored_bytes == 0 and s.bits == 0 for s in saved if s.codec == "recompute")
    assert sum(n.op_type == "Softmax" for n in model.graph) == 2
    for name, expected in stored.items():
        np.testing.assert_array_equal(recomputed[name], expected, err_msg=name)


@pytest.mark.parametrize("bits", [2, 4])
def test_queries_keys_and_values_get_8_bits_where_probabilities_are_recomputed(bits: int) -> None:
    saved, _, _ = _vjp(Precision(bits, "recompute"), made=True)
    kept = {s.codec for s in saved if s.kind == "activation"}
    assert kept == {"row8"} and sum(s.kind == "activation" for s in saved) == 3
    saved, _, _ = _vjp(Precision(bits, "store"), made=True)
    assert {s.bits for s in saved} == {float(bits)}


def test_the_choice_is_made_for_each_attention_by_its_own_size() -> None:
    """Two attentions in one graph, 5 tokens: heads of width 4 store, of width 1 recompute."""
    g = GraphBuilder()
    inputs, out = _attention(g)
    narrow = [g.op("Slice", v, g.constant([0]), g.constant([1]), g.constant([3])) for v in inputs]
    s = g.op("FusedMatMul", narrow[0], narrow[1], domain=MICROSOFT, transB=1)
    other = g.op("MatMul", g.op("Softmax", s, axis=-1), narrow[2])
    flowing = gradient_values(g.nodes, inputs, [out, other])
    chains = attention_chains(g.nodes, flowing, Precision(4, "auto"))
    assert [c[0].inputs[0] for c in chains.by_softmax.values()] == [narrow[0]]


@pytest.mark.parametrize(("attention", "softmaxes"), [("store", 2), ("recompute", 4)])
def test_the_option_reaches_the_training_graph(attention: str, softmaxes: int) -> None:
    made = compiled("tiny_vit", bits=4, attention=attention)
    assert sum(n.op_type == "Softmax" for n in made.steps[4].model.graph) == softmaxes
