"""Gradient errors of single codes, against steps that are compiled with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.pack.allocation.gauge import Gauge
from s2a_edge.pack.allocation.probe import make_probe
from s2a_edge.pack.codecs import Codec, codec_for
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.exact import ExactCodec
from s2a_edge.pack.precision import Precision
from tests.pack.compiled import adapted, images, run

MODEL, BATCH = "tiny_vit", 2


@dataclass(frozen=True)
class OnlyOne:
    """Four bits for one saved value, everything else as it is."""

    key: str
    recompute: bool = False

    def codec(self, kind: str, shape: tuple[int, ...], *, recomputes: bool = False, key: str = "",
              ) -> Codec:
        if key == self.key:
            return codec_for(kind, 4, shape)
        return ExactCodec(kind)

    def recompute_probabilities(self, tokens: int, width: int, *, key: str = "") -> bool:
        return self.recompute


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    made = adapted(MODEL, BATCH)
    target = np.eye(5, dtype=np.float32)[[1, 3]]
    return {made.data_inputs[0].name or "": images(made, BATCH), "target": target,
            "weight": np.full(BATCH, 0.5, np.float32),
            **{f"param.{t.name}": t.initial for t in made.trainables},
            **{f"acc.{t.name}": np.zeros_like(t.initial) for t in made.trainables}}


@pytest.fixture(scope="module")
def gauge(tmp_path_factory: pytest.TempPathFactory, feeds: dict[str, np.ndarray],
          ) -> Iterator[Gauge]:
    made = Gauge(make_probe(adapted(MODEL, BATCH)), tmp_path_factory.mktemp("gauge"), 1)
    made.begin(feeds)
    yield made


def _compiled_error(policy: OnlyOne, feeds: dict[str, np.ndarray], names: tuple[str, ...],
                    ) -> np.ndarray:
    ours, exact = (run(differentiate(adapted(MODEL, BATCH), p).model, feeds)
                   for p in (policy, Precision(32, "store")))
    return np.array([np.sum(np.square((ours[f"acc_out.{n}"] - exact[f"acc_out.{n}"])
                                      .astype(np.float64))) for n in names])


def test_exact_values_have_no_error_at_all(gauge: Gauge) -> None:
    for key in gauge.points:
        assert not gauge.error({key: gauge.exact(key)}).any(), key


@pytest.mark.parametrize("kind", ["normalized", "activation", "probability", "derivative:gelu"])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_error_is_that_of_the_compiled_step(gauge: Gauge, feeds: dict[str, np.ndarray],
                                               kind: str, layer: int) -> None:
    key = next(k for k in gauge.points if k.startswith(f"blocks.{layer}") and f":{kind}:" in k)
    codec = codec_for(kind, 4, gauge.points[key].saved.shape)
    measured = gauge.error({key: gauge.decoded(key, codec)})
    expected = _compiled_error(OnlyOne(key), feeds, gauge.trainables)
    assert expected.sum() > 0
    np.testing.assert_allclose(measured, expected, rtol=1e-2, atol=1e-4 * expected.max())


def test_recomputed_probabilities_follow_what_they_come_from(
        gauge: Gauge, feeds: dict[str, np.ndarray]) -> None:
    probability = next(k for k in gauge.points if ":probability:" in k)
    assert len(gauge.leaves[probability]) == 2
    for key in gauge.leaves[probability]:
        decoded = gauge.decoded(key, codec_for("activation", 4, gauge.points[key].saved.shape))
        measured = gauge.error({key: decoded,
                                probability: gauge.again(probability, {key: decoded})})
        expected = _compiled_error(OnlyOne(key, recompute=True), feeds, gauge.trainables)
        np.testing.assert_allclose(measured, expected, rtol=1e-2, atol=1e-4 * expected.max())


def test_norms_are_those_of_the_gradients(gauge: Gauge, feeds: dict[str, np.ndarray]) -> None:
    exact = run(differentiate(adapted(MODEL, BATCH), Precision(32, "store")).model, feeds)
    np.testing.assert_allclose(
        gauge.begin(feeds), [np.sum(np.square(exact[f"acc_out.{n}"])) for n in gauge.trainables],
        rtol=1e-4)


def test_parts_of_the_backward_are_few(gauge: Gauge, tmp_path: Path) -> None:
    assert 1 < len(gauge.starts) <= 16
