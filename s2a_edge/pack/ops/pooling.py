"""Pooling. Max-pool keeps the index inside the window (2-4 bits, exact), average-pool nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.ops.convolution import conv_pads
from s2a_edge.pack.ops.padding import pad
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    extra_outputs,
    int_attribute,
    ints_attribute,
    scalar,
)

# Below any float32 that a network produces, yet finite: padding that never wins a maximum.
_LOWEST = -3.0e38


@dataclass(frozen=True)
class _Window:
    """The windows of a pooling node; one entry per spatial axis.

    Attributes:
        kernel, strides, dilations: as in ONNX.
        begin: padding before the map.
        end: padding after it that the windows really reach: less than declared where the strides
            leave a rest, more where ``ceil_mode`` lets the last window reach further.
        declared_end: padding after it that counts as part of the map (``count_include_pad``).
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    declared_end: list[int]

    @classmethod
    def of(cls, node: ir.Node, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> _Window:
        kernel = ints_attribute(node, "kernel_shape", [])
        strides = ints_attribute(node, "strides", [1] * len(kernel))
        dilations = ints_attribute(node, "dilations", [1] * len(kernel))
        pads = conv_pads(node, in_shape, tuple(kernel), out_shape)
        begin, declared_end = pads[: len(kernel)], pads[len(kernel):]
        end = [max((out_shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
                   - begin[i] - in_shape[2 + i], 0) for i in range(len(kernel))]
        return cls(kernel, strides, dilations, begin, end, declared_end)

    def offsets(self) -> list[tuple[int, ...]]:
        """Where the elements of a window lie relative to its first, in C order."""
        return [tuple(o * d for o, d in zip(offset, self.dilations, strict=True))
                for offset in np.ndindex(*self.kernel)]


def _max_pool_forward(f: Forward) -> tuple[ir.Value, ...]:
    g, x = f.g, f.x()
    outputs = f.emit()
    y = outputs[0]
    window = _Window.of(f.node, shape_of(x), shape_of(y))
    padded = x
    if any(window.begin) or any(window.end):
        pads = [0, 0, *window.begin, 0, 0, *window.end]
        padded = g.op("Pad", x, g.constant(pads), scalar(g, _LOWEST, x))
    out = shape_of(y)[2:]
    axes = g.constant(list(range(2, 2 + len(out))))
    steps = g.constant(window.strides)
    # Of the offsets that hold the maximum the first, as PyTorch has it: it is the furthest from the
    # last. (Where would broadcast both of its branches first, in memory of its own.)
    offsets = window.offsets()
    last = len(offsets) - 1
    furthest: ir.Value | None = None
    for number, offset in enumerate(offsets[:-1]):
        stops = [o + (n - 1) * s + 1 for o, n, s in zip(offset, out, window.strides, strict=True)]
        shifted = g.op("Slice", padded, g.constant(list(offset)), g.constant(stops), axes, steps)
        hit = g.op("Cast", g.op("Equal", shifted, y), to=int(dtype_of(x)))
        distance = g.op("Mul", hit, scalar(g, last - number, x))
        furthest = distance if furthest is None else g.op("Max", furthest, distance)
    # Whatever matches no earlier offset must be at the last one.
    index = g.op("Mul", y, scalar(g, 0, y)) if furthest is None \
        else g.op("Sub", scalar(g, last, x), furthest)
    f.save("index", index, f"index:{math.prod(window.kernel)}")
    return outputs


def _max_pool_backward(b: Backward) -> Gradients:
    """Each output's gradient goes to the place its index names.

    Input positions fall into stride-many phases per axis; within one phase the windows' offsets
    are whole steps, so a phase is a sum of shifted maps of the output's size. The phases are then
    interleaved with one reshape and transpose.
    """
    g, index = b.g, b.saved("index")
    window = _Window.of(b.node, b.shape(0), b.out_shape())
    strides = window.strides
    n, c = b.shape(0)[:2]
    out = b.out_shape()[2:]
    reach = [last // s for last, s in zip(window.offsets()[-1], strides, strict=True)]
    phases = [_phase(b, index, phase, window, reach) for phase in np.ndindex(*strides)]
    size = [o + r for o, r in zip(out, reach, strict=True)]
    spatial = len(out)
    stacked = phases[0] if len(phases) == 1 else g.op("Concat", *phases, axis=1)
    wide = g.op("Reshape", stacked, g.constant([n, *strides, c, *size]))
    perm = [0, 1 + spatial]
    for i in range(spatial):
        perm += [2 + spatial + i, 1 + i]
    full = [d * s for d, s in zip(size, strides, strict=True)]
    dx = g.op("Reshape", g.op("Transpose", wide, perm=perm), g.constant([n, c, *full]))
    return [_crop(b, dx, window.begin, full)]


def _phase(b: Backward, index: ir.Value, phase: tuple[int, ...], window: _Window,
           reach: list[int]) -> ir.Value:
    g, strides = b.g, window.strides
    total: ir.Value | None = None
    for number, offset in enumerate(window.offsets()):
        if any(o % s != p for o, s, p in zip(offset, strides, phase, strict=True)):
            continue
        hit = g.op("Cast", g.op("Equal", index, scalar(g, number, index)), to=int(dtype_of(b.dy)))
        part = g.op("Mul", hit, b.dy)
        shift = [o // s for o, s in zip(offset, strides, strict=True)]
        part = pad(g, part, [0, 0, *shift],
                   [0, 0, *[r - k for r, k in zip(reach, shift, strict=True)]])
        total = part if total is None else g.op("Add", total, part)
    if total is None:  # a stride larger than the kernel leaves places that no window sees
        shape = [*b.out_shape()[:2], *[o + r for o, r in zip(b.out_shape()[2:], reach,
                                                             strict=True)]]
        total = g.op("Expand", scalar(g, 0.0, b.dy), g.constant(shape))
    return total


def _crop(b: Backward, dx: ir.Value, begin: list[int], full: list[int]) -> ir.Value:
    want = b.shape(0)[2:]
    after = [max(p + w - f, 0) for p, w, f in zip(begin, want, full, strict=True)]
    dx = pad(b.g, dx, [0] * (2 + len(want)), [0, 0, *after])
    if not any(begin) and list(shape_of(dx)[2:]) == list(want):
        return dx
    stops = [p + w for p, w in zip(begin, want, strict=True)]
    return b.g.op("Slice", dx, b.g.constant(begin), b.g.constant(stops),
                  b.g.constant(list(range(2, 2 + len(want)))))


def _average_pool_backward(b: Backward) -> Gradients:
    # Every place of a window gets dy / count: a depthwise ConvTranspose with ones.
    g = b.g
    window = _Window.of(b.node, b.shape(0), b.out_shape())
    kind = dtype_of(b.dy).numpy()
    counts = _counts(b, window)
    equal = bool((counts == counts.flat[0]).all())
    scale = scalar(g, 1.0 / counts.flat[0], b.dy) if equal else g.constant(
        (1.0 / counts).astype(kind))
    scaled = g.op("Mul", b.dy, scale)
    want, kernel, strides = b.shape(0)[2:], window.kernel, window.strides
    extra = [want[i] + window.begin[i] + window.end[i]
             - (strides[i] * (b.out_shape()[2 + i] - 1) + kernel[i]) for i in range(len(kernel))]
    channels = b.shape(0)[1]
    ones = g.constant(np.ones((channels, 1, *kernel), kind))
    return [g.op("ConvTranspose", scaled, ones, strides=strides,
                 pads=[*window.begin, *window.end], group=channels,
                 output_padding=extra if any(extra) else None)]


def _counts(b: Backward, window: _Window) -> np.ndarray:
    """How many positions each window divides by: [1, 1, P, Q] float64.

    With ``count_include_pad`` those in the declared padding count, but none that ``ceil_mode``
    adds behind it.
    """
    padded = bool(int_attribute(b.node, "count_include_pad", 0))
    total = np.ones((1, 1), np.float64)
    for i, size in enumerate(b.shape(0)[2:]):
        starts = np.arange(b.out_shape()[2 + i]) * window.strides[i] - window.begin[i]
        low, high = (-window.begin[i], size + window.declared_end[i]) if padded else (0, size)
        seen = np.minimum(starts + window.kernel[i], high) - np.maximum(starts, low)
        total = np.multiply.outer(total, seen)
    return total


def _average_pool_refuses(node: ir.Node) -> str | None:
    dilations = ints_attribute(node, "dilations", [1])
    return f"dilations {dilations}" if set(dilations) != {1} else None


RULES = {
    ("", "MaxPool"): Rule(_max_pool_backward, _max_pool_forward, extra_outputs),
    ("", "AveragePool"): Rule(_average_pool_backward, refuses=_average_pool_refuses),
}
