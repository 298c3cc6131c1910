"""Sliced linears compute what the whole ones do, share their bytes, and never exist as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.adapt import Adapted, adapt
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.forward_graphs import forward_model
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.slice_products import Sliced, read_transposed, slice_products
from tests.pack.compiled import run

_WIDTH, _TOKENS, _BATCH, _CLASSES = 64, 5, 2, 3
_EXACT = Precision(32, "store")
_TOLERANCE = 2e-5
Body = Callable[[GraphBuilder, ir.Value], ir.Value]


def _linear(g: GraphBuilder, x: ir.Value, outputs: int, name: str) -> ir.Value:
    rng = np.random.default_rng(len(name) + outputs)
    weight = rng.standard_normal((shape_of(x)[-1], outputs)).astype(np.float32) / 8
    g.module = name
    product = g.op("MatMul", x, g.initializer(f"{name}.weight", weight))
    bias = rng.standard_normal(outputs).astype(np.float32)
    return g.op("Add", g.initializer(f"{name}.bias", bias), product)


def _adapted(body: Body) -> Adapted:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (_BATCH, _TOKENS, _WIDTH))
    features = g.op("ReduceMean", body(g, _linear(g, x, _WIDTH, "stem")), g.constant([1]),
                    keepdims=0)
    return adapt(model_of([x], [features], g, "backbone"), (x,), features, classes=_CLASSES)


def _mlp(g: GraphBuilder, x: ir.Value, hidden: int = 2048, op: str = "Gelu") -> ir.Value:
    return _linear(g, g.op(op, _linear(g, x, hidden, "fc1")), _WIDTH, "fc2")


def _heads(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """timm's fused projection, and the products that follow it."""
    wide = g.op("Reshape", _linear(g, x, 3 * _WIDTH, "qkv"),
                g.constant([_BATCH, _TOKENS, 3, 4, _WIDTH // 4]))
    q, k, v = g.multi("Split", [g.op("Transpose", wide, perm=[2, 0, 3, 1, 4]),
                                g.constant([1, 1, 1])], 3, axis=0)
    p = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 2, 4, 3])), axis=-1)
    out = g.op("Transpose", g.op("MatMul", p, v), perm=[0, 1, 3, 2, 4])
    return g.op("Reshape", out, g.constant([_BATCH, _TOKENS, _WIDTH]))


def _chunks(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Split on the channels: a gated unit."""
    a, b = g.multi("Split", [_linear(g, x, 2 * _WIDTH, "gated"), g.constant([_WIDTH, _WIDTH])], 2,
                   axis=2)
    return g.op("Mul", a, g.op("Sigmoid", b))


def _feeds(made: Adapted) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    feeds = {"x": rng.standard_normal((_BATCH, _TOKENS, _WIDTH)).astype(np.float32),
             "target": np.eye(_CLASSES, dtype=np.float32)[:_BATCH],
             "weight": np.full(_BATCH, 0.5, np.float32)}
    for t in made.trainables:
        values = t.initial + 0.1 * rng.standard_normal(t.initial.shape)
        feeds[f"param.{t.name}"] = values.astype(np.float32)
        feeds[f"acc.{t.name}"] = np.zeros_like(t.initial)
    return feeds


@pytest.mark.parametrize(("body", "products"), [
    (_mlp, 1 + 4 + 4), (_heads, 1 + 3 + 2), (_chunks, 1 + 2),
    (lambda g, x: _mlp(g, x, op="Relu"), 1 + 4 + 4),
], ids=["mlp", "heads", "chunks", "relu"])
def test_same_outputs_and_gradients(body: Body, products: int) -> None:
    whole = _adapted(body)
    feeds = _feeds(whole)
    before = run(differentiate(whole, _EXACT).model, feeds)
    sliced = slice_products(_adapted(body)).adapted
    assert sum(n.op_type in ("MatMul", "Gemm") for n in sliced.nodes) == products + 1  # the head
    after = run(differentiate(sliced, _EXACT).model, feeds)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        difference = np.linalg.norm(after[name] - expected)
        assert difference <= _TOLERANCE * np.linalg.norm(expected) + 1e-7, name


def test_the_hidden_layer_never_exists_as_a_whole() -> None:
    sliced = slice_products(_adapted(_mlp)).adapted
    for model in (differentiate(sliced, _EXACT).model, forward_model(sliced, "eval")):
        computed = [v for n in model.graph for v in n.outputs if v.name and v.dtype]
        assert not [v.name for v in computed if len(shape_of(v)) > 1 and shape_of(v)[-1] == 2048]


@pytest.mark.parametrize("body", [
    lambda g, x: _mlp(g, x, hidden=96),  # narrow
    lambda g, x: _mlp(g, x, hidden=1009),  # no divisor
    lambda g, x: g.op("Add", (h := g.op("Gelu", _linear(g, x, 512, "fc1"))) and
                      _linear(g, h, _WIDTH, "fc2"), _linear(g, h, _WIDTH, "fc3")),  # two readers
], ids=["narrow", "prime", "two-readers"])
def test_left_as_it_was(body: Body) -> None:
    made = _adapted(body)
    sliced = slice_products(_adapted(body))
    assert [n.op_type for n in sliced.adapted.nodes] == [n.op_type for n in made.nodes]
    assert not sliced.transposed


def _written(folder: Path, body: Body) -> tuple[Sliced, list[ir.Model], int]:
    inference = forward_model(_adapted(body), "infer")
    sliced = slice_products(_adapted(body))
    read_transposed(inference, sliced.transposed)
    models = [differentiate(sliced.adapted, _EXACT).model, inference]
    return sliced, models, len(emit_weights(models, folder / WEIGHTS_NAME))


def test_parts_share_the_bytes_of_the_whole(tmp_path: Path) -> None:
    sliced, models, count = _written(tmp_path, _mlp)
    entries = emit_weights(models, tmp_path / WEIGHTS_NAME)
    wholes = {e.name: e for e in entries if e.part_of is None}
    assert count == len(entries) == len(wholes) + 8
    assert sliced.transposed == {"fc1.weight"}
    assert wholes["fc1.weight"].shape == (2048, _WIDTH)
    assert wholes["fc2.weight"].shape == (2048, _WIDTH)
    floats = sum(e.size_bytes for e in wholes.values())
    assert floats == 4 * (_WIDTH * _WIDTH + 2 * _WIDTH * 2048)


def test_files_compute_the_same_as_the_whole_graph(tmp_path: Path) -> None:
    _, (step, inference), _ = _written(tmp_path, _mlp)
    weights = {e.name: e for e in emit_weights([step, inference], tmp_path / WEIGHTS_NAME)}
    whole = _adapted(_mlp)
    feeds = _feeds(whole)
    expected = run(differentiate(whole, _EXACT).model, feeds)
    emit_model(step, weights, tmp_path / "train.onnx")
    emit_model(inference, weights, tmp_path / "infer.onnx")
    assert np.allclose(run(tmp_path / "train.onnx", feeds)["logits"], expected["logits"],
                       rtol=_TOLERANCE, atol=_TOLERANCE)
    params = {k: v for k, v in feeds.items() if k == "x" or k.startswith("param.")}
    assert np.allclose(run(tmp_path / "infer.onnx", params)["logits"], expected["logits"],
                       rtol=_TOLERANCE, atol=_TOLERANCE)
