"""Values that the backward computes again from other saved ones."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.recompute import Recompute, way_back
from s2a_edge.pack.schedule import live_peak_bytes
from s2a_edge.spec.errors import UsageError
from tests.pack.compiled import Arrays, compiled, run

_BATCHES = 4


def _gradients(made: Compiled, batch: int) -> Arrays:
    (step,) = made.steps.values()
    initial = {t.name: t.initial for t in made.trainables}
    out = run(step.model, made.samples.feeds(step.model, initial, batch))
    return {name: value for name, value in out.items() if name.startswith("acc_out.")}


def _error(got: Arrays, exact: Arrays) -> float:
    flat, true = (np.concatenate([g[n].ravel() for n in sorted(exact)]) for g in (got, exact))
    return float(np.linalg.norm(flat - true) / np.linalg.norm(true))


def _made(mode: Recompute, bits: int, adapter: str = "bias") -> Compiled:
    return compiled("tiny_vit", bits=bits, recompute=mode, adapters=(adapter,), attention="auto",
                    calibration_samples=4 * _BATCHES)


def _saved_bytes(made: Compiled) -> int:
    (step,) = made.steps.values()
    return sum(s.stored_bytes for s in step.saved)


@pytest.mark.parametrize("adapter", ["bias", "lora", "full"])
@pytest.mark.parametrize("mode", ["cheap", "products"])
def test_uncompressed_gradients_are_those_of_stored_values(mode: Recompute, adapter: str) -> None:
    exact, again = (_gradients(_made(m, 32, adapter), 0) for m in ("none", mode))
    for name, expected in exact.items():
        np.testing.assert_allclose(again[name], expected, rtol=1e-4,
                                   atol=1e-6 * max(1.0, np.abs(expected).max()), err_msg=name)


def test_products_bring_back_all_but_norms() -> None:
    """Of a transformer only normalized values and what is small remain; they get 8 bits."""
    (step,) = _made("products", 4).steps.values()
    kept = {s.kind for s in step.saved if 0 < s.bits < 32}
    again = {s.kind for s in step.saved if s.codec == "recompute"}
    assert kept == {"normalized"}
    assert again == {"activation", "derivative:gelu", "probability"}
    assert {s.codec for s in step.saved if s.kind == "normalized" and s.bits < 32} == {"row8"}


@pytest.mark.parametrize("adapter", ["bias", "lora"])
def test_products_take_fewer_bytes(adapter: str) -> None:
    stored, again = (_made(m, 4, adapter) for m in ("none", "products"))
    assert _saved_bytes(again) < 0.6 * _saved_bytes(stored)


def test_products_lower_the_peak() -> None:
    """Of a model whose saved values are more than what one operator works on."""
    peaks = []
    for mode in ("none", "products"):
        made = compiled("timm:vit_tiny_patch16_224", recompute=mode, micro_batches=(1,),
                        attention="auto")
        peaks.append(live_peak_bytes(list(made.steps[1].model.graph)))
    assert peaks[1] < 0.8 * peaks[0]


def test_products_at_8_bits_are_closer_than_all_values_at_4() -> None:
    """One error, of the norm's code, instead of one for each value behind it."""
    errors: dict[Recompute, float] = {}
    modes: tuple[Recompute, Recompute] = ("none", "products")
    for mode in modes:
        pairs = [(_gradients(_made(mode, 4), n), _gradients(_made("none", 32), n))
                 for n in range(_BATCHES)]
        errors[mode] = float(np.mean([_error(*pair) for pair in pairs]))
    assert errors["products"] < errors["none"]


def test_a_norm_that_lora_reads_is_kept_once() -> None:
    """LoRA needs a norm's output, the norm's own backward the same without scale and offset."""
    stored, cheap = _made("none", 4, "lora"), _made("cheap", 4, "lora")
    (step,) = cheap.steps.values()
    again = {s.module for s in step.saved if s.codec == "recompute"}
    # Those of a single token are exact and thousandths of the rest.
    norms = [s for s in step.saved if s.kind == "normalized" and s.bits < 32]
    assert again == {"blocks.0.attn.qkv.lora", "blocks.0.fc1.lora", "blocks.1.attn.qkv.lora"}
    assert len(norms) == len(again)
    assert _saved_bytes(cheap) < _saved_bytes(stored)


def test_tuning_biases_has_nothing_cheap_to_compute_again() -> None:
    assert _saved_bytes(_made("cheap", 4)) == _saved_bytes(_made("none", 4))


def _chain(op: Literal["Mul", "Gemm", "MaxPool"], frozen: bool = True,
           ) -> tuple[ir.Value, ir.Value, GraphBuilder]:
    """kept -> op -> value."""
    g = GraphBuilder()
    shape = (96, 96) if op == "Gemm" else (1, 96, 96, 96)
    kept = g.op("Tanh", g.input("x", ir.DataType.FLOAT, shape))
    if op == "MaxPool":
        return kept, g.op("MaxPool", kept, kernel_shape=[2, 2]), g
    other = (g.initializer("w", np.eye(96, dtype=np.float32)) if frozen
             else g.op("Exp", g.input("v", ir.DataType.FLOAT, (96, 96))))
    return kept, g.op(op, kept, other), g


@pytest.mark.parametrize(("op", "frozen", "mode", "found"), [
    ("Mul", True, "none", False), ("Mul", True, "cheap", True), ("Mul", False, "cheap", False),
    ("Gemm", True, "cheap", False), ("Gemm", True, "products", True),
    ("Gemm", False, "products", False), ("MaxPool", True, "products", False)])
def test_the_way_back(op: Literal["Mul", "Gemm", "MaxPool"], frozen: bool, mode: Recompute,
                      found: bool) -> None:
    kept, value, _ = _chain(op, frozen)
    nodes = way_back(value, lambda v: v is kept or v.producer() is None, mode)
    assert (nodes is not None) == found
    if nodes is not None:
        assert [n.op_type for n in nodes] == [op]


def test_one_product_and_not_two() -> None:
    kept, value, g = _chain("Gemm")
    second = g.op("Gemm", value, g.initializer("w2", np.eye(96, dtype=np.float32)))

    def is_kept(v: ir.Value) -> bool:
        return v is kept or v.producer() is None

    assert way_back(second, is_kept, "products") is None
    thin = g.op("Gemm", value, g.initializer("a", np.ones((96, 4), np.float32)))
    nodes = way_back(thin, is_kept, "products")  # of low rank: an adapter's
    assert nodes is not None and len(nodes) == 2


def test_what_is_asked_for_is_checked() -> None:
    with pytest.raises(UsageError, match="--recompute"):
        PackOptions(classes=2, recompute="all")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(UsageError, match="--recompute"):
        PackOptions(classes=2, recompute="products", bits="auto")
