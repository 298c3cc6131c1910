"""Allocations: what is chosen, within what, and whether errors add up as is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.pack.allocation.allocate import Allocation, Allocator
from s2a_edge.pack.allocation.codebooks import measured_codebooks
from s2a_edge.pack.allocation.gauge import Gauge
from s2a_edge.pack.allocation.options import RECOMPUTE, Codecs, bits_of, ties_of
from s2a_edge.pack.allocation.probe import make_probe
from s2a_edge.pack.allocation.sensitivity import Sensitivity, measure
from s2a_edge.pack.calibration import noise
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.saving import SavedValue
from tests.pack.compiled import adapted, run

MODEL, BATCH = "tiny_vit", 4
Arrays = dict[str, np.ndarray]


class Model:
    """The tiny ViT with everything that was measured of it."""

    def __init__(self, folder: Path) -> None:
        made = adapted(MODEL, BATCH)
        probe = make_probe(made)
        self.gauge = Gauge(probe, folder, 1)
        initial = {t.name: t.initial for t in made.trainables}
        self.feeds = noise(0).feeds(probe.model, initial)
        self.codecs = Codecs(measured_codebooks(self.gauge, [self.feeds]))
        self.sensitivity = measure(self.gauge, [self.feeds], self.codecs, BATCH)
        self.saved = differentiate(made, Precision(32, "store")).saved
        self.allocator = Allocator(self.sensitivity, self.saved, self.gauge.leaves, BATCH)
        # One batch of one is an outlier now and then; what is predicted is the mean of many.
        self.batches = [noise(seed).feeds(probe.model, initial) for seed in range(8)]
        self.exact = self.gradients(Precision(32, "store"))

    def gradients(self, policy: Precision | Allocation) -> list[Arrays]:
        compiled = differentiate(adapted(MODEL, BATCH), policy).model
        return [{n: v for n, v in run(compiled, feeds).items() if n.startswith("acc_out.")}
                for feeds in self.batches]

    def error(self, policy: Precision | Allocation) -> float:
        """Relative error of all gradients together, by compiling and running the step."""
        return float(np.sqrt(np.mean([_relative(made, exact) for made, exact in
                                      zip(self.gradients(policy), self.exact, strict=True)])))

    def stored_bytes(self, policy: Precision | Allocation) -> int:
        return sum(s.stored_bytes for s in differentiate(adapted(MODEL, BATCH), policy).saved)


def _relative(made: Arrays, exact: Arrays) -> float:
    wrong = sum(float(np.square(made[n] - g).sum()) for n, g in exact.items())
    return wrong / sum(float(np.square(g).sum()) for g in exact.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield Model(tmp_path_factory.mktemp("gauge"))


@pytest.mark.parametrize("share", [0.62, 0.8, 1.0, 1.5])
def test_errors_of_single_values_add_up(model: Model, share: float) -> None:
    found = model.allocator.within(int(share * model.stored_bytes(Precision(4, "store"))))
    assert found is not None
    # 3 bits are interpolated, and 26 values are not many.
    assert model.error(found) == pytest.approx(found.squared_error ** 0.5, rel=0.35)


@pytest.mark.parametrize("attention", ["store", "recompute"])
def test_fixed_bits_are_predicted_as_well(model: Model, attention: str) -> None:
    codecs = Codecs({})
    sensitivity = measure(model.gauge, [model.feeds], codecs, BATCH)
    followed = {key for p, leaves in model.gauge.leaves.items() for key in leaves}
    squared = 0.0
    for tie in ties_of(model.saved):
        key = tie[0]
        if (key, 4) not in sensitivity.alone:
            continue
        again = attention == "recompute"
        if again and key in model.gauge.leaves and model.gauge.leaves[key]:
            continue
        table = sensitivity.followed if again and key in followed else sensitivity.alone
        bits = 8 if again and ":activation:" in key else 4
        squared += sensitivity.relative(table[key, bits])
    measured = model.error(Precision(4, attention))  # type: ignore[arg-type]  # both are
    assert measured == pytest.approx(squared ** 0.5, rel=0.35)


@pytest.mark.parametrize("attention", ["store", "recompute"])
def test_at_equal_bytes_it_has_less_error_than_four_bits_for_all(model: Model, attention: str,
                                                                 ) -> None:
    uniform = Precision(4, attention)  # type: ignore[arg-type]  # both are
    found = model.allocator.within(model.stored_bytes(uniform))
    assert found is not None
    assert model.stored_bytes(found) <= model.stored_bytes(uniform)
    assert model.error(found) < model.error(uniform)


def test_bytes_are_those_of_the_compiled_step(model: Model) -> None:
    for capacity in (model.allocator.smallest_bytes, 20_000, 40_000, 10**7):
        found = model.allocator.within(capacity)
        assert found is not None
        assert model.stored_bytes(found) == found.stored_bytes <= capacity
        assert found.bound <= found.squared_error
    assert found is not None and found.squared_error == 0
    assert found.stored_bytes == model.allocator.largest_bytes
    assert model.allocator.within(model.allocator.smallest_bytes - 1) is None


def test_more_bytes_never_mean_more_error(model: Model) -> None:
    errors = []
    for capacity in range(model.allocator.smallest_bytes, 60_000, 3_000):
        found = model.allocator.within(capacity)
        assert found is not None
        errors.append(found.squared_error)
    assert errors == sorted(errors, reverse=True)


def test_the_same_seed_gives_the_same_bits(model: Model, tmp_path: Path) -> None:
    again = Model(tmp_path)
    for capacity in (16_000, 25_000):
        assert again.allocator.within(capacity) == model.allocator.within(capacity)


@pytest.mark.parametrize(("attention", "recomputed"), [("store", 0), ("recompute", 2)])
def test_attention_can_be_told_what_to_do(model: Model, attention: str, recomputed: int) -> None:
    allocator = Allocator(model.sensitivity, model.saved, model.gauge.leaves, BATCH,
                          attention)  # type: ignore[arg-type]  # both are
    found = allocator.within(25_000)
    assert found is not None
    assert list(found.bits.values()).count(RECOMPUTE) == recomputed


def test_every_value_has_a_reason(model: Model) -> None:
    found = model.allocator.within(20_000)
    assert found is not None
    assert set(found.why) == set(found.bits)
    for key, why in found.why.items():
        assert why.reason
        saved = next(s for s in model.saved if s.key == key)
        assert tuple(why.sensitivity) == bits_of(saved) and why.sensitivity[32] == 0
        assert why.sensitivity[2] > why.sensitivity[4] > why.sensitivity[8]


def _saved(module: str, kind: str, number: int, shape: tuple[int, ...] = (2, 40, 8)) -> SavedValue:
    return SavedValue(f"{module}:{kind}:{number}", "v", module, kind, "float32", 32.0, shape, 0)


def test_slices_of_one_hidden_layer_are_tied() -> None:
    gelu = "derivative:gelu"
    saved = [_saved("a", gelu, 0), _saved("a", gelu, 1), _saved("b", gelu, 0),
             _saved("a", "activation", 0), _saved("a", "activation", 1)]
    assert ties_of(saved) == [(f"a:{gelu}:0", f"a:{gelu}:1"), (f"b:{gelu}:0",),
                              ("a:activation:0",), ("a:activation:1",)]
    one = np.ones(1)
    alone = {(key, bits): one / 10**bits for key in (f"a:{gelu}:0", f"b:{gelu}:0")
             for bits in bits_of(saved[0]) if bits != 32}
    sensitivity = Sensitivity(("t",), one, alone, {}, Codecs({}), 2)
    allocator = Allocator(sensitivity, saved[:3], {}, 2)
    found = allocator.within(640 * 3)  # four bits would take 320 a slice; 8 bits 640
    assert found is not None
    assert found.bits[f"a:{gelu}:0"] == found.bits[f"a:{gelu}:1"]
    assert set(found.bits) == {s.key for s in saved[:3]}


def test_what_is_small_or_exact_is_not_chosen() -> None:
    assert bits_of(_saved("a", "mask", 0)) == ()
    assert bits_of(_saved("a", "index:9", 0)) == ()
    assert bits_of(_saved("a", "exact", 0)) == ()
    assert bits_of(_saved("a", "activation", 0, (4, 384))) == ()
    assert bits_of(_saved("a", "normalized", 0, (4, 1, 384))) == ()
    assert bits_of(_saved("a", "normalized", 0)) == (2, 3, 4, 8, 16, 32)
    assert bits_of(_saved("a", "derivative:gelu", 0))[:2] == (1, 2)
