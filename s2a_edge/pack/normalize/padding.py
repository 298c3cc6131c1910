"""Explicit padding: ``auto_pad`` becomes pads, now that every size is known."""

from __future__ import annotations

import math

import onnx_ir as ir

from s2a_edge.pack.graph import shape_of

_WINDOWED = frozenset({"Conv", "MaxPool", "AveragePool"})


def make_padding_explicit(graph: ir.Graph) -> None:
    """SAME_UPPER, SAME_LOWER and VALID of Conv, MaxPool and AveragePool -> pads."""
    for node in graph:
        mode = node.attributes.get_string("auto_pad", "NOTSET")
        if node.op_type not in _WINDOWED or mode == "NOTSET":
            continue
        pads = [0] * (2 * _rank(node)) if mode == "VALID" else _same_pads(node, mode)
        del node.attributes["auto_pad"]
        node.attributes.add(ir.AttrInt64s("pads", pads))


def _rank(node: ir.Node) -> int:
    return len(_kernel(node))


def _kernel(node: ir.Node) -> list[int]:
    kernel = node.attributes.get_ints("kernel_shape")
    if kernel:
        return list(kernel)
    weight = node.inputs[1]
    assert weight is not None
    return list(shape_of(weight)[2:])


def _same_pads(node: ir.Node, mode: str) -> list[int]:
    """Pads such that the output has ceil(input / stride) positions, as the output's shape says."""
    x = node.inputs[0]
    assert x is not None
    kernel = _kernel(node)
    strides = node.attributes.get_ints("strides") or [1] * len(kernel)
    dilations = node.attributes.get_ints("dilations") or [1] * len(kernel)
    before, after = [], []
    for size, k, s, d in zip(shape_of(x)[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return [*before, *after]
