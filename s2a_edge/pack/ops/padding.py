"""Padding: every mode is linear along each axis, so the backward folds each border back in."""

from __future__ import annotations

import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.rule import Backward, Gradients, Rule, constant_operands, scalar

_MODES = ("constant", "reflect", "edge", "wrap")


def pad(g: GraphBuilder, value: ir.Value, before: list[int], after: list[int]) -> ir.Value:
    """Zero padding per axis."""
    if not any(before) and not any(after):
        return value
    return g.op("Pad", value, g.constant([*before, *after]), scalar(g, 0.0, value),
                mode="constant")


def take(g: GraphBuilder, value: ir.Value, axis: int, start: int, stop: int) -> ir.Value:
    """``value[start:stop]`` along ``axis``, 0 <= start < stop."""
    if (start, stop) == (0, shape_of(value)[axis]):
        return value
    return g.op("Slice", value, g.constant([start]), g.constant([stop]), g.constant([axis]))


def _reversed(g: GraphBuilder, value: ir.Value, axis: int) -> ir.Value:
    return g.op("Slice", value, g.constant([-1]), g.constant([-(2**62)]), g.constant([axis]),
                g.constant([-1]))


def _along(g: GraphBuilder, value: ir.Value, axis: int, before: int, after: int) -> ir.Value:
    rank = len(shape_of(value))
    return pad(g, value, [before if i == axis else 0 for i in range(rank)],
               [after if i == axis else 0 for i in range(rank)])


def _fold(g: GraphBuilder, dy: ir.Value, axis: int, before: int, after: int, mode: str,
          ) -> ir.Value:
    """The adjoint of padding one axis by ``before`` and ``after`` (negative: cropping)."""
    left, right = max(before, 0), max(after, 0)
    size = shape_of(dy)[axis] - left - right
    dx = take(g, dy, axis, left, left + size)
    if mode != "constant":
        if left:
            border = take(g, dy, axis, 0, left)
            dx = g.op("Add", dx, _border(g, border, axis, size, mode, first=True))
        if right:
            border = take(g, dy, axis, left + size, left + size + right)
            dx = g.op("Add", dx, _border(g, border, axis, size, mode, first=False))
    return _along(g, dx, axis, max(-before, 0), max(-after, 0))


def _border(g: GraphBuilder, border: ir.Value, axis: int, size: int, mode: str, *, first: bool,
            ) -> ir.Value:
    """A border's gradient where its elements came from, zero elsewhere; ``size`` along ``axis``."""
    if mode == "edge":  # all from the outermost element
        total = g.op("ReduceSum", border, g.constant([axis]), keepdims=1)
        return _along(g, total, axis, 0 if first else size - 1, size - 1 if first else 0)
    width = shape_of(border)[axis]
    if mode == "wrap":  # from the other end
        return _along(g, border, axis, size - width if first else 0, 0 if first else size - width)
    # mirrored, the outermost element itself left out
    mirrored = _reversed(g, border, axis)
    rest = size - 1 - width
    return _along(g, mirrored, axis, 1 if first else rest, rest if first else 1)


def _pad_backward(b: Backward) -> Gradients:
    rank = len(b.shape(0))
    pads = [int(p) for p in b.constant(1)]
    axes = [int(a) % rank for a in b.constant(3)] \
        if len(b.node.inputs) > 3 and b.node.inputs[3] is not None else list(range(rank))
    mode = b.node.attributes.get_string("mode", "constant") or "constant"
    dx = b.dy
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes):], strict=True):
        if before or after:
            dx = _fold(b.g, dx, axis, before, after, mode)
    return [dx, *[None] * (len(b.needs) - 1)]


def _pad_refuses(node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "constant")
    if mode not in _MODES:
        return f"mode {mode}"
    computed = constant_operands(1, 3)(node)
    if computed is not None:
        return computed
    pads = node.inputs[1]
    assert pads is not None and pads.const_value is not None
    negative = bool((pads.const_value.numpy() < 0).any())
    return f"negative pads in mode {mode}" if negative and mode != "constant" else None


RULES = {("", "Pad"): Rule(_pad_backward, refuses=_pad_refuses)}
