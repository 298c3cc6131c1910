"""Blocks of a backbone: found by structure, named by modules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.pack.blocks import Block, find_blocks
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.layout import channel_axis
from tests.pack.compiled import adapted

FLOAT = ir.DataType.FLOAT
RNG = np.random.default_rng(0)


class Net:
    """Writes a small network; ``at`` sets the module of what follows."""

    def __init__(self, *shape: int) -> None:
        self.g = GraphBuilder()
        self.x = self.g.input("x", FLOAT, shape)
        self._weights = 0

    def at(self, module: str) -> Net:
        self.g.module = module
        return self

    def linear(self, x: ir.Value, module: str, out: int | None = None) -> ir.Value:
        width = shape_of(x)[-1]
        return self.at(module).g.op("MatMul", x, self._weight(width, out or width))

    def conv(self, x: ir.Value, module: str, out: int | None = None, stride: int = 1) -> ir.Value:
        width = shape_of(x)[1]
        return self.at(module).g.op("Conv", x, self._weight(out or width, width, 3, 3),
                                    pads=[1, 1, 1, 1], strides=[stride, stride])

    def op(self, module: str, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.at(module).g.op(op_type, *inputs, **attributes)

    def pool(self, x: ir.Value) -> ir.Value:
        return self.op("maxpool", "MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def attention(self, x: ir.Value, module: str) -> ir.Value:
        return self.op(module, "Softmax", self.linear(x, f"{module}.qkv"), axis=-1)

    def blocks(self, features: ir.Value) -> tuple[Block, ...]:
        return find_blocks(self.g.nodes, (self.x,), features)

    def _weight(self, *shape: int) -> ir.Value:
        array = RNG.standard_normal(shape).astype(np.float32)
        self._weights += 1
        return self.g.initializer(f"w{self._weights}", array)


def _transformer(name: Callable[[int, str], str], depth: int = 3) -> tuple[Block, ...]:
    net = Net(2, 5, 8)
    x = net.linear(net.x, "embed")
    for i in range(depth):
        x = net.op(name(i, ""), "Add", x, net.attention(x, name(i, "attn")))
        mlp = net.op(name(i, "act"), "Gelu", net.linear(x, name(i, "fc1"), 16))
        x = net.op(name(i, ""), "Add", x, net.linear(mlp, name(i, "fc2"), 8))
    return net.blocks(net.op("pool", "ReduceMean", x, net.g.constant([1]), keepdims=0))


def test_attention_and_mlp_of_a_module_are_one_block() -> None:
    blocks = _transformer(lambda i, part: f"blocks.{i}.{part}".rstrip("."))
    assert [b.name for b in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(b.residual and len(b.nodes) == 7 for b in blocks)
    assert all(a.output is b.input for a, b in pairwise(blocks))


def test_without_names_attention_and_what_follows_it_are_one_block() -> None:
    blocks = _transformer(lambda i, part: "net")
    assert [b.name for b in blocks] == ["net.block0", "net.block1", "net.block2"]
    assert all(len(b.nodes) == 7 for b in blocks)


def test_a_block_takes_in_what_its_module_does_around_the_residual_connection() -> None:
    net = Net(2, 4, 8, 8)
    x = net.conv(net.x, "stem")
    for i in range(2):
        y = net.conv(net.op(f"stage.{i}.norm", "Relu", x), f"stage.{i}.conv1")
        x = net.op(f"stage.{i}.act", "Relu", net.op(f"stage.{i}", "Add", x, y))
    blocks = net.blocks(net.op("head", "GlobalAveragePool", net.pool(x)))
    assert [[n.op_type for n in b.nodes] for b in blocks] == [["Relu", "Conv", "Add", "Relu"]] * 2
    assert blocks[1].output is x


def test_modules_named_like_blocks_are_blocks_without_a_residual_connection() -> None:
    net = Net(2, 4, 8, 8)
    x = net.conv(net.conv(net.x, "stem"), "blocks.0.0.conv", 8, stride=2)
    x = net.op("blocks.0.1", "Add", x, net.conv(x, "blocks.0.1.conv"))
    x = net.conv(net.op("blocks.1.0.act", "Relu", net.conv(x, "blocks.1.0.expand", 16)),
                 "blocks.1.0.project", 8)
    blocks = net.blocks(net.op("pool", "GlobalAveragePool", net.conv(x, "conv_head")))
    assert [(b.name, b.residual) for b in blocks] == [
        ("blocks.0.0", False), ("blocks.0.1", True), ("blocks.1.0", False)]


def test_a_network_that_forks_and_joins_without_adding_has_blocks_too() -> None:
    net = Net(2, 4, 8, 8)
    x = net.conv(net.x, "stem")
    for i in range(2):
        parts = [net.conv(x, f"mixed{i}.left", 4), net.conv(x, f"mixed{i}.right", 4)]
        x = net.op(f"mixed{i}", "Concat", *parts, axis=1)
    blocks = net.blocks(net.op("pool", "GlobalAveragePool", x))
    assert [(b.name, b.residual) for b in blocks] == [("mixed0", False), ("mixed1", False)]


def test_a_plain_chain_has_the_stages_between_changes_of_resolution() -> None:
    net = Net(2, 3, 16, 16)
    x = net.op("r0", "Relu", net.conv(net.x, "f.0", 8))
    x = net.op("r1", "Relu", net.conv(net.pool(x), "f.3", 8))
    x = net.op("r2", "Relu", net.conv(x, "f.5", 8))
    x = net.op("r3", "Relu", net.conv(x, "f.7", 16, stride=2))
    features = net.op("flat", "Flatten", net.pool(x))
    blocks = net.blocks(net.linear(features, "fc", 10))
    assert [(b.name, shape_of(b.input)[1:], shape_of(b.output)[1:]) for b in blocks] == [
        ("stage0", (3, 16, 16), (8, 16, 16)), ("stage1", (8, 8, 8), (8, 8, 8)),
        ("stage2", (8, 8, 8), (16, 4, 4))]


def test_a_perceptron_has_none() -> None:
    net = Net(2, 8)
    x = net.op("a", "Relu", net.linear(net.x, "fc1"))
    assert net.blocks(net.op("b", "Add", x, net.linear(x, "fc2"))) == ()


def test_a_mask_beside_the_tokens_does_not_hide_the_trunk() -> None:
    g = GraphBuilder()
    tokens = g.input("ids", ir.DataType.INT64, (2, 5))
    mask = g.input("mask", ir.DataType.INT64, (2, 5))
    table = g.initializer("table", RNG.standard_normal((9, 8)).astype(np.float32))
    weight = g.initializer("w", RNG.standard_normal((8, 8)).astype(np.float32))
    kept = g.op("Unsqueeze", g.op("Cast", mask, to=int(FLOAT)), g.constant([2]))
    x = g.op("Gather", table, tokens)
    for i in range(3):
        g.module = f"layer.{i}"
        x = g.op("Add", x, g.op("Mul", g.op("MatMul", x, weight), kept))
    features = g.op("ReduceMean", x, g.constant([1]), keepdims=0)
    blocks = find_blocks(g.nodes, (mask, tokens), features)
    assert [b.name for b in blocks] == ["layer.0", "layer.1", "layer.2"]


@pytest.mark.parametrize(("name", "expected"), [
    ("tiny_vit", ["blocks.0", "blocks.1"]), ("tiny_resnet", ["layer1", "layer2", "layer3"])])
def test_exported_modules_give_their_names(name: str, expected: list[str]) -> None:
    assert [b.name for b in adapted(name).blocks] == expected


def test_the_end_of_a_block_is_what_its_module_returns() -> None:
    for block in adapted("tiny_resnet").blocks:
        assert block.nodes[-1].op_type == "Relu"


def test_channels_are_where_a_convolution_or_linear_layer_has_them() -> None:
    net = Net(2, 6, 6, 6)
    assert channel_axis(net.x) == 1  # nothing tells
    net.op("m", "MatMul", net.op("r", "Relu", net.x), net._weight(6, 4))
    assert channel_axis(net.x) == 3
    first = Net(2, 6, 6, 6)
    moved = first.op("t", "Transpose", first.x, perm=[0, 2, 3, 1])
    first.op("n", "LayerNormalization", moved, first._weight(6), axis=-1)
    assert channel_axis(first.x) == 1  # channels go to the last axis before the norm
    last = Net(2, 6, 6, 6)
    y = last.conv(last.op("t", "Transpose", last.x, perm=[0, 3, 1, 2]), "c")
    assert channel_axis(last.x) == 3
    assert channel_axis(last.op("t", "Transpose", y, perm=[0, 2, 3, 1])) == 3
    assert channel_axis(Net(2, 5, 8).x) == 2
    flat = Net(2, 6, 5, 8)
    rows = flat.op("r", "Reshape", flat.x, flat.g.constant([2, 30, 8]))
    flat.op("n", "LayerNormalization", rows, flat._weight(8), axis=-1)
    assert channel_axis(flat.x) == 3
