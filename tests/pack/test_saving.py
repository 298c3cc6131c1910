"""What is kept between forward and backward, and where it is decoded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack import saving
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.differentiate import StepGraph, vector_jacobian_product
from s2a_edge.pack.graph import KIND_KEY, nbytes_of
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.saving import SavedValues
from tests.pack.compiled import compiled, run

MODELS = ["tiny_vit", "tiny_vit_scaled", "tiny_resnet"]
BITS = [2, 4, 8, 16, 32]
SHAPE = (2, 3, 32)


def _store(bits: int) -> tuple[GraphBuilder, SavedValues, ir.Value]:
    g = GraphBuilder()
    x = g.op("Neg", g.input("x", ir.DataType.FLOAT, SHAPE))
    return g, SavedValues(g, Precision(bits)), x


def _loss_at(model: ir.Model) -> int:
    return next(i for i, n in enumerate(model.graph) if n.outputs[0].name == "loss")


def test_a_value_that_several_rules_want_is_encoded_once() -> None:
    g, store, x = _store(4)
    first = store.declare(x, "normalized")
    count = len(g.nodes)
    assert store.declare(x, "activation") == first
    assert len(g.nodes) == count and len(store.summary()) == 1


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("one", "other"), [
    ("mask", "activation"), ("activation", "mask"), ("derivative:gelu", "activation"),
    ("derivative:sigmoid", "derivative:tanh"), ("activation", "exact"),
])
def test_two_forms_of_one_value_are_kept_apart(one: str, other: str, bits: int) -> None:
    _, store, x = _store(bits)
    keys = [store.declare(x, one), store.declare(x, other)]
    assert len(store.summary()) == 2
    alone = []
    for kind in (one, other):
        _, single, value = _store(bits)
        single.declare(value, kind)
        alone.append(single.summary()[0].codec)
    assert [s.codec for s in store.summary()] == alone
    assert store.recall(keys[0]) is not store.recall(keys[1]) or bits == 32


def test_relu_whose_output_is_multiplied_gets_the_value_and_not_its_mask() -> None:
    """Squared ReLU: d relu(x)²/dx = 2 relu(x) where x > 0."""
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, SHAPE)
    y = g.op("Relu", g.op("Neg", g.op("Neg", x)))
    step = vector_jacobian_product(g.nodes, [x], [g.op("Mul", y, y)], Precision(16))
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal(SHAPE).astype(np.float32) for n in ("x", "dy_0")}
    got = run(step.model, feeds)["d_x"]
    expected = feeds["dy_0"] * 2 * np.maximum(feeds["x"], 0)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-6)  # float16 keeps 11 bits


def test_uncompressed_bytes_of_a_value_in_two_forms_are_counted_once() -> None:
    _, store, x = _store(32)
    store.declare(x, "mask")
    store.declare(x, "activation")
    assert sum(s.stored_bytes for s in store.summary()) == nbytes_of(x)


def test_a_use_nearby_shares_the_decoded_value_and_a_far_one_decodes_again() -> None:
    g, store, x = _store(4)
    key = store.declare(x, "activation")
    first = store.recall(key)
    for _ in range(10):
        g.op("Neg", x)
    assert store.recall(key) is first
    for _ in range(saving._NEAR_NODES + 1):
        g.op("Neg", x)
    count = len(g.nodes)
    second = store.recall(key)
    assert second is not first and len(g.nodes) > count
    assert store.recall(key) is second


def test_decoding_is_working_memory_whatever_is_being_made() -> None:
    g, store, x = _store(4)
    key = store.declare(x, "activation")
    g.kind = "gradients"
    decoded = store.recall(key)
    assert decoded.metadata_props[KIND_KEY] == "working" and g.kind == "gradients"


def test_stored_tensors_are_marked_and_their_bytes_add_up() -> None:
    for bits in BITS:
        g, store, x = _store(bits)
        store.declare(x, "activation")
        (info,) = store.summary()
        kept = [v for n in g.nodes for v in n.outputs if v.metadata_props[KIND_KEY] == "saved"]
        assert info.stored_bytes == sum(nbytes_of(v) for v in kept) > 0
        assert (info.kind, info.shape, info.value) == ("activation", SHAPE, x.name)


# Whole steps.

@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", MODELS)
def test_only_declared_bytes_cross_from_forward_to_backward(name: str, bits: int) -> None:
    """Whatever a node behind the loss reads from before it was declared, or is no activation."""
    made = compiled(name, bits=bits)
    model = made.steps[4].model
    at = _loss_at(model)
    nodes = list(model.graph)
    before = {v for n in nodes[:at] for v in n.outputs}
    crossing = {v for n in nodes[at + 1:] for v in n.inputs if v in before}
    undeclared = [v for v in crossing if v.metadata_props.get(KIND_KEY) != "saved"]
    # What the loss's own gradient reads: log p and the weighted targets, [N, C] and [N].
    assert all(n is not None for n in (v.producer() for v in undeclared))
    assert sum(nbytes_of(v) for v in undeclared) <= 3 * 4 * 5 * 4
    declared = sum(s.stored_bytes for s in made.steps[4].saved)
    assert sum(nbytes_of(v) for v in crossing - set(undeclared)) == declared


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("attention", ["store", "recompute"])
def test_decoding_happens_behind_the_loss_and_just_before_its_use(bits: int, attention: str,
                                                                  ) -> None:
    model = compiled("tiny_vit", bits=bits, attention=attention).steps[4].model
    nodes = list(model.graph)
    place = {n: i for i, n in enumerate(nodes)}
    at = _loss_at(model)
    saved = {v for n in nodes for v in n.outputs if v.metadata_props.get(KIND_KEY) == "saved"}
    readers = [n for n in nodes if any(v in saved for v in n.inputs)
               and not any(v in saved for v in n.outputs)]
    behind = [n for n in readers if place[n] > at]
    assert len(behind) >= len(saved) > 0
    for node in behind:
        # The chain of single-use nodes from the code to the decoded value, then its first use.
        while len(list(node.outputs[0].uses())) == 1:
            use = next(iter(node.outputs[0].uses())).node
            assert place[use] - place[node] <= saving._NEAR_NODES
            node = use
            if node.op_type in ("MatMul", "FusedMatMul", "Gemm", "ReduceMean", "ReduceSum"):
                break


@pytest.mark.parametrize("bits", [4, 32])
def test_no_decoded_value_is_kept_for_a_use_far_away(bits: int) -> None:
    model = compiled("tiny_vit", bits=bits).steps[4].model
    nodes = list(model.graph)
    place = {n: i for i, n in enumerate(nodes)}
    at = _loss_at(model)
    for node in nodes[at:]:
        for value in node.outputs:
            uses = sorted(place[u.node] for u in value.uses())
            if value.metadata_props.get(KIND_KEY) == "working" and uses:
                gaps = np.diff([place[node], *uses])
                assert gaps.max() <= 2 * saving._NEAR_NODES, value.name


def test_probabilities_are_kept_once_for_softmax_and_product() -> None:
    for bits in (4, 32):
        saved = compiled("tiny_vit", bits=bits, attention="store").steps[4].saved
        per_block = [s for s in saved if s.module == "blocks.0.attn"]
        assert sorted(s.kind for s in per_block) == ["activation"] * 3 + ["probability"]


def _kinds(made: Compiled) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for s in made.steps[4].saved:
        found.setdefault(s.module, set()).add(s.kind)
    return found


@pytest.mark.parametrize("bits", BITS)
def test_frozen_layers_save_nothing(bits: int) -> None:
    """ViT: what is kept belongs to norms, attention and GELU; ResNet: to ReLU and the pool."""
    for name in ("tiny_vit", "tiny_vit_scaled"):
        kinds = _kinds(compiled(name, bits=bits, attention="store"))
        assert {m: k for m, k in kinds.items() if m.startswith("blocks.1")} == {
            "blocks.1.norm1": {"normalized", "exact"}, "blocks.1.norm2": {"normalized", "exact"},
            "blocks.1.attn": {"activation", "probability"}, "blocks.1": {"derivative:gelu"}}
    kinds = _kinds(compiled("tiny_resnet", bits=bits))
    assert not any("conv" in module or "short" in module for module in kinds)
    assert set().union(*(k for m, k in kinds.items() if m != "head")) == {"mask", "index:9"}


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_the_head_alone_saves_its_features_and_no_more(name: str) -> None:
    made = compiled(name, bits=4, adapters=("head",))
    assert [(s.module, s.shape) for s in made.steps[4].saved] == [("head", (4, 32))]
    model = made.steps[4].model
    behind = [n for n in list(model.graph)[_loss_at(model) + 1:]]
    # dlogits, two gradients and two accumulations.
    assert {n.metadata_props["s2a.module"] for n in behind} == {"loss", "head"}
    assert len(behind) <= 8


def test_lower_bits_store_less() -> None:
    for name in MODELS:
        stored = [sum(s.stored_bytes for s in compiled(name, bits=b, attention="store")
                      .steps[4].saved) for b in (2, 4, 8, 16, 32)]
        if name == "tiny_resnet":  # one-bit masks and 4-bit indices at any setting but 32
            assert len(set(stored[:4])) == 1 and stored[3] < stored[4] / 8
        else:
            assert all(low < high for low, high in pairwise(stored))


def _step_of_frozen(op: str, weight: np.ndarray) -> StepGraph:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (2, 4, 6, 6))
    y = g.op(op, g.op("Neg", x), g.initializer("w", weight))
    return vector_jacobian_product(g.nodes, [x], [y], Precision(4))


@pytest.mark.parametrize(("op", "shape"), [("Conv", (3, 4, 3, 3)), ("MatMul", (6, 5)),
                                           ("ConvTranspose", (4, 3, 2, 2)), ("Mul", (6,))])
def test_a_frozen_operand_means_that_nothing_is_saved(op: str, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert _step_of_frozen(op, weight).saved == ()
