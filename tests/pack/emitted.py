"""Every kind of graph that the packer writes, over the small models, operators and codecs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.codecs import codec_for
from s2a_edge.pack.frozen.decode_nodes import FrozenCoder
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.pack.precision import Precision
from s2a_edge.spec.frozen_weights import FrozenStorage
from tests.pack.codecs.codec_runs import CHOICES
from tests.pack.compiled import compiled
from tests.pack.ops.machine import build
from tests.pack.ops.samples import SAMPLES

Models = Iterator[tuple[str, ir.Model]]

RECIPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tiny_vit", {"bits": 2}), ("tiny_vit", {"bits": 3}), ("tiny_vit", {"bits": 4}),
    ("tiny_vit", {"bits": 8}), ("tiny_vit", {"bits": 16}), ("tiny_vit", {"bits": 32}),
    ("tiny_vit", {"attention": "recompute"}), ("tiny_vit", {"recompute": "products"}),
    ("tiny_vit", {"adapters": ("bias", "lrp", "lsb"), "loss": "bce"}),
    ("tiny_vit", {"adapters": ("lora",), "loss": "mse"}), ("tiny_vit_scaled", {"loss": "l1"}),
    ("tiny_vit", {"adapters": ("full",), "optimizer": "sgd"}),
    ("tiny_vit", {"precision": "fp16"}), ("tiny_vit", {"precision": "bf16"}),
    ("tiny_resnet", {"precision": "fp16"}), ("tiny_resnet", {"precision": "bf16"}),
    ("tiny_resnet", {"bits": 4}), ("tiny_resnet", {"bits": 2}), ("tiny_resnet", {"bits": 8}),
    ("tiny_resnet", {"bits": 32}), ("tiny_resnet", {"adapters": ("bias", "lrp", "lsb")}),
    ("tiny_resnet", {"adapters": ("full",)}), ("tiny_resnet", {"adapters": ("head",)}),
    *((name, {"precision": precision, "bits": bits}) for name in ("tiny_vit", "tiny_resnet")
      for precision in ("fp16", "bf16") for bits in (4, 32)),
    ("tiny_vit", {"precision": "fp16", "bits": 8}), ("tiny_vit", {"precision": "fp16", "bits": 3}),
    ("tiny_vit", {"precision": "fp16", "recompute": "products"}),
    ("tiny_vit", {"precision": "fp16", "adapters": ("bias", "lrp", "lsb"), "loss": "bce"}),
    ("tiny_resnet", {"precision": "fp16", "adapters": ("full",), "frozen": "int8"}),
)


def recipe_id(recipe: tuple[str, dict[str, Any]]) -> str:
    name, options = recipe
    return "-".join([name, *(f"{k}={v if not isinstance(v, tuple) else '+'.join(v)}"
                             for k, v in options.items())])


def of_recipe(recipe: tuple[str, dict[str, Any]]) -> Models:
    name, options = recipe
    made = compiled(name, **options)
    for batch, step in made.steps.items():
        yield f"train_b{batch}", step.model
    yield "eval", made.evaluation
    yield "optimizer", made.optimizer


def of_operators() -> Models:
    """Forward and backward of every operator that has a rule, uncompressed and in 4 bits."""
    for sample in SAMPLES:
        for bits in (32, 4):
            model = build(sample, "float32", precision=Precision(bits, "store")).step.model
            lower(model)
            yield f"{sample.id}, {bits} bits", model


def of_codecs() -> Models:
    for kind, bits in CHOICES:
        yield f"{kind} in {bits} bits", _graph(partial(_coded, kind=kind, bits=bits))


def of_frozen() -> Models:
    """A product with a frozen weight, by how the weight is kept."""
    storages: tuple[FrozenStorage, ...] = ("fp16", "int8", "int4")
    for storage in storages:
        weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)

        def product(g: GraphBuilder, x: ir.Value, weight: np.ndarray = weight) -> ir.Value:
            first = g.op("MatMul", x, g.initializer("first", weight))  # 8 bits at least
            return g.op("MatMul", first, g.initializer("weight", weight.T.copy()))

        model = _graph(product, (2, 256))
        FrozenCoder(storage, model, model.clone()).apply(model)
        yield storage, model


def _coded(g: GraphBuilder, x: ir.Value, kind: str, bits: int) -> ir.Value:
    shape = shape_of(x)
    codec = codec_for(kind, bits, shape)
    return codec.decode(g, codec.encode(g, x), shape)


def _graph(make: Callable[[GraphBuilder, ir.Value], ir.Value],
           shape: tuple[int, ...] = (2, 4, 16, 32)) -> ir.Model:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, shape)
    return model_of([x], [make(g, x)], g, "g")
