"""The fixed policy: which codec keeps what, and when attention probabilities are recomputed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.exact import EMITTED, ExactCodec
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.precision import BITS, Precision
from tests.pack.compiled import run

SHAPE = (2, 5, 64)
KINDS = ["activation", "normalized", "probability", "mask", "index:9", "index:4", "exact",
         *(f"derivative:{fn}" for fn in EMITTED)]


def _through(kind: str, bits: int, x: np.ndarray) -> np.ndarray:
    """What the backward sees of ``x``, by ONNX Runtime."""
    g = GraphBuilder()
    value = g.input("x", ir.DataType.FLOAT, x.shape)
    codec = Precision(bits).codec(kind, x.shape)
    decoded = codec.decode(g, codec.encode(g, value), x.shape)
    assert shape_of(decoded) == x.shape
    out = g.op("Identity", decoded)
    return run(model_of([value], [out], g, "codec"), {"x": x})[out.name or ""]


def _sample(kind: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    if kind == "probability":
        return np.asarray(np.exp(x) / np.exp(x).sum(-1, keepdims=True))
    if kind.startswith("index"):
        return rng.integers(int(kind.partition(":")[2]), size=SHAPE).astype(np.float32)
    return x


@pytest.mark.parametrize("bits", [b for b in BITS if b != 32])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_codec_at_every_setting(kind: str, bits: int) -> None:
    x = _sample(kind)
    exact, got = _through(kind, 32, x), _through(kind, bits, x)
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    if kind.partition(":")[0] in ("mask", "index", "exact"):
        assert error == 0
    else:
        # 2 bits leave a third of a normal value's norm at the least; far off would be a bug.
        assert error < {2: 0.75, 3: 0.4, 4: 0.2, 8: 0.02, 16: 0.002}[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(4, 32), (32,), (4, 32, 1, 1), (4, 1, 1, 32), (4, 32, 1)])
def test_statistics_are_kept_as_they_are(shape: tuple[int, ...], bits: int) -> None:
    assert Precision(bits).codec("activation", shape) == ExactCodec("activation")
    kind = "derivative:sigmoid"
    assert Precision(bits).codec(kind, shape) == ExactCodec(kind)


@pytest.mark.parametrize("shape", [(4, 32, 2, 1), (1, 8, 32), (4, 1, 8, 8)])
def test_maps_and_tokens_are_no_statistics(shape: tuple[int, ...]) -> None:
    assert Precision(4).codec("activation", shape).bits == 4


def test_32_bits_means_nothing_compressed() -> None:
    assert all(isinstance(Precision(32).codec(kind, SHAPE), ExactCodec) for kind in KINDS)


@pytest.mark.parametrize(("bits", "expected"), [(2, 8), (4, 8), (8, 8), (16, 16)])
def test_what_probabilities_are_recomputed_from_has_8_bits_at_least(bits: int, expected: int,
                                                                   ) -> None:
    codec = Precision(bits, "recompute").codec("activation", SHAPE, recomputes=True)
    assert codec.bits == expected


@pytest.mark.parametrize(("bits", "tokens", "width", "expected"), [
    (4, 192, 64, True), (4, 191, 64, False), (2, 192, 64, True), (2, 191, 64, False),
    (8, 4, 64, True), (16, 10_000, 64, False), (32, 10_000, 64, False),
])
def test_auto_recomputes_where_it_takes_no_more_bytes(bits: int, tokens: int, width: int,
                                                      expected: bool) -> None:
    assert Precision(bits).recompute_probabilities(tokens, width) is expected


@pytest.mark.parametrize("bits", BITS)
def test_store_and_recompute_override_the_rule(bits: int) -> None:
    assert Precision(bits, "recompute").recompute_probabilities(1, 64)
    assert not Precision(bits, "store").recompute_probabilities(10_000, 1)
