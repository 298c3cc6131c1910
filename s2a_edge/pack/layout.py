"""Which axis of a value holds the channels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.trunk import is_weighted

# Operators that take channels along axis 1 of their first operand.
_CHANNELS_FIRST = frozenset({
    "Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
})  # fmt: skip
_CHANNELS_LAST = frozenset({"LayerNormalization", "RMSNormalization"})
# For each axis of a value, the axis of the original that it is; None where axes were mixed.
_Axes = tuple[int | None, ...]
# How many nodes away from a value an operator may be that tells.
_FAR = 12


def channel_axis(value: ir.Value) -> int:
    """The axis of the channels of ``value`` [N, ...], told by what reads or computes it.

    A convolution has its channels in axis 1, a linear layer and a LayerNorm in the last one; what
    lies between may permute the axes. Where nothing tells: the last axis of three, axis 1 of four.
    """
    rank = len(shape_of(value))
    axes: _Axes = tuple(range(rank))
    frontier: list[tuple[ir.Value, _Axes]] = [(value, axes)]
    seen = {value}
    for _ in range(_FAR):
        if not frontier:
            break
        current, axes = frontier.pop(0)
        for node, other, moved in _around(current, axes):
            told = _told(node, current)
            if told is not None and axes[told] is not None:
                return axes[told]  # type: ignore[return-value]  # checked just above
            if other not in seen and moved is not None:
                seen.add(other)
                frontier.append((other, moved))
    return rank - 1 if rank <= 3 else 1


def _told(node: ir.Node, value: ir.Value) -> int | None:
    """The axis of the channels of ``value``, which ``node`` reads or computes, if that tells."""
    rank = len(shape_of(value))
    if is_weighted(node) and node.op_type not in ("Conv", "ConvTranspose"):
        reads = value is node.inputs[0]
        computes = value is node.outputs[0]
        return rank - 1 if reads or computes else None
    if node.op_type in _CHANNELS_FIRST and rank >= 3:
        return 1
    return rank - 1 if node.op_type in _CHANNELS_LAST else None


def _around(value: ir.Value, axes: _Axes) -> Iterator[tuple[ir.Node, ir.Value, _Axes | None]]:
    """Readers of ``value``, then its producer; what is behind them, and its axes."""
    for use in value.uses():
        if use.node.outputs:
            yield use.node, use.node.outputs[0], _through(use.node, value, axes, forward=True)
    node = value.producer()
    if node is not None:
        for operand in node.inputs:
            if operand is not None and operand.const_value is None:
                yield node, operand, _through(node, operand, axes, forward=False)


def _through(node: ir.Node, operand: ir.Value, axes: _Axes, *, forward: bool) -> _Axes | None:
    """The axes on the other side of ``node``; None where it mixes them all."""
    if node.domain:
        return None
    source, result = shape_of(operand), shape_of(node.outputs[0])
    if node.op_type == "Transpose":
        perm = list(node.attributes.get_ints("perm") or range(len(axes))[::-1])
        if forward:
            return tuple(axes[p] for p in perm)
        return tuple(axes[perm.index(i)] for i in range(len(axes)))
    if node.op_type == "Reshape":
        here, there = (source, result) if forward else (result, source)
        return _reshaped(here, there, axes)
    return axes if source == result else None


def _reshaped(here: tuple[int, ...], there: tuple[int, ...], axes: _Axes) -> _Axes:
    """Axes that a reshape leaves: equal ones at the front, and the last one if it is equal."""
    moved: list[int | None] = [None] * len(there)
    for i, (a, b) in enumerate(zip(here, there, strict=False)):
        if a != b:
            break
        moved[i] = axes[i]
    if here[-1] == there[-1]:
        moved[-1] = axes[-1]
    return tuple(moved)


__all__ = ["channel_axis"]
