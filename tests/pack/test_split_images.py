"""A front in parts of the micro-batch: the same function, the same gradients, less memory."""

from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.pack.adapt import Adapted, Tuning
from s2a_edge.pack.choose_front import Front, choose_front, in_parts
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.forward_graphs import forward_model
from s2a_edge.pack.graph import SAMPLES_KEY, shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.split_images import dependents, find_cuts, split_images
from tests.pack.compiled import LABELS, adapted, images, run

BATCH = 4
FOUR = Precision(4, "store")
_BIASES = Tuning()


def split(name: str, samples: int, tuning: Tuning = _BIASES, share: float = 0.6,
          ) -> tuple[Adapted, Adapted]:
    """The whole network and the same cut at about ``share`` of its nodes."""
    whole, part = adapted(name, BATCH, tuning), adapted(name, samples, tuning)
    cuts = find_cuts(whole, part)
    cut = [c for c in cuts if c.nodes <= share * len(dependents(whole))][-1]
    return whole, split_images(whole, part, cut)


def step(network: Adapted, bits: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs of the training step on noise."""
    model = differentiate(network, Precision(bits, "store")).model
    lower(model)
    rng = np.random.default_rng(seed)
    feeds = {network.data_inputs[0].name or "": images(network, BATCH, seed),
             "target": np.eye(len(LABELS), dtype=np.float32)[rng.integers(len(LABELS), size=BATCH)],
             "weight": np.full(BATCH, 1 / BATCH, np.float32)}
    for t in network.trainables:
        feeds[f"param.{t.name}"] = t.initial
        feeds[f"acc.{t.name}"] = np.zeros_like(t.initial)
    return run(model, feeds)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("name", "tuning"), [
    ("tiny_resnet", Tuning()), ("tiny_resnet", Tuning(("bias", "lrp", "lsb")))])
def test_the_same_step(name: str, tuning: Tuning, samples: int) -> None:
    whole, parts = split(name, samples, tuning)
    assert {n.metadata_props.get(SAMPLES_KEY) for n in parts.nodes} == {
        None, *map(str, range(BATCH // samples))}
    assert [t.name for t in parts.trainables] == [t.name for t in whole.trainables]
    expected, got = step(whole, 32), step(parts, 32)
    assert list(got) == list(expected)
    for key, value in expected.items():
        scale = max(1e-6, float(np.abs(value).max()))
        np.testing.assert_allclose(got[key] / scale, value / scale, atol=3e-5, err_msg=key)


def test_what_is_saved_is_the_same() -> None:
    whole, parts = (differentiate(a, FOUR).saved for a in split("tiny_resnet", 2))
    assert {s.key for s in whole} == {s.key for s in parts}
    assert len(parts) > len(whole)
    for saved in whole:
        same = [s for s in parts if s.key == saved.key]
        assert sum(s.shape[0] for s in same) == saved.shape[0]
        assert {(s.codec, s.bits) for s in same} == {(saved.codec, saved.bits)}


def test_evaluation_too() -> None:
    whole, parts = split("tiny_resnet", 2)
    feeds = {whole.data_inputs[0].name or "": images(whole, BATCH),
             **{f"param.{t.name}": t.initial for t in whole.trainables}}
    outputs = [run(forward_model(a, "eval"), feeds)["logits"] for a in (whole, parts)]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)


def test_cuts_are_passed_by_everything() -> None:
    whole, part = adapted("tiny_resnet", BATCH), adapted("tiny_resnet", 1)
    nodes = dependents(whole)
    for cut in find_cuts(whole, part):
        before = {v for n in nodes[:cut.nodes] for v in n.outputs}
        read = {v for n in nodes[cut.nodes:] for v in n.inputs if v in before}
        assert read <= {cut.value}
        assert shape_of(cut.value)[0] == BATCH


def test_other_networks_are_not_parts() -> None:
    assert find_cuts(adapted("tiny_resnet", BATCH), adapted("tiny_vit", 1)) == ()


def test_a_token_computed_for_each_sample_is_not_cut() -> None:
    # The class token trains here, and is expanded to the batch apart from the samples.
    assert find_cuts(adapted("tiny_vit", BATCH), adapted("tiny_vit", 1)) == ()


def test_the_cheapest_front_is_chosen() -> None:
    whole, single = adapted("tiny_resnet", BATCH), adapted("tiny_resnet", 1)
    asked: list[Front | None] = []

    def needed(front: Front | None) -> int:
        asked.append(front)
        return 1000 if front is None else 500 + front.nodes

    front = choose_front(whole, single, needed)
    fronts = [f for f in asked if f is not None]
    assert front is not None and front.nodes == min(f.nodes for f in fronts)
    assert {f.samples for f in fronts} == {2}  # never single samples: threads share them out
    assert choose_front(whole, single, lambda f: 1000 if f is None else 950) is None
    one = adapted("tiny_resnet", 1)
    assert choose_front(one, one, lambda f: 0) is None


def test_a_small_network_stays_whole() -> None:
    """At 32 px sessions of more nodes take more than parts save."""
    small = adapted("tiny_resnet", BATCH)
    options = PackOptions(labels=LABELS, micro_batches=(BATCH,), threads=1)
    chosen = in_parts({BATCH: small, 1: adapted("tiny_resnet", 1)}, [BATCH],
                      lambda n: adapted("tiny_resnet", n), FOUR, options)
    assert chosen == {BATCH: small}


def test_every_micro_batch_gets_parts_of_as_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {n: adapted("tiny_resnet", n) for n in (1, 2, 4, 8)}
    options = PackOptions(labels=LABELS, micro_batches=(2, 4, 8), threads=1)
    monkeypatch.setattr("s2a_edge.pack.choose_front._WORTH", -10.0)  # whatever it costs
    chosen = in_parts(networks, [2, 4, 8], lambda n: adapted("tiny_resnet", n), FOUR, options)
    parts = {batch: {n.metadata_props.get(SAMPLES_KEY) for n in network.nodes} - {None}
             for batch, network in chosen.items()}
    each = 8 // len(parts[8])
    assert each in (2, 4)
    assert {batch: len(found) for batch, found in parts.items()} == {
        batch: batch // each if batch > each else 0 for batch in (2, 4, 8)}
