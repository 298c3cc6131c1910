"""LSB, the lite side branch of S2A (arXiv 2503.08154): a light path beside each block.

    z = CAP_k(x)                     channel average pooling: k neighbouring channels into one
    y' = y + U · relu(W z + b)       token by token; U starts at zero

Kept for the backward are z, coded (1/k of the block's features), and the mask of ReLU, one bit
for each of the ``rank`` hidden values. The hidden values themselves, which the gradient of U wants,
are computed again from the decoded z. (The mask could be too; but where z is near the kink the
sign then flips, and with it the gradient of everything below: on a ResNet, whose other saved values
are exact, that was the larger error.)

The nearest published relative is TinyTL's lite residual (arXiv 2007.11622). Our reading where the
paper's text is silent: x is what the block reads, so that the branch is parallel to all of it; a
block that reduces the resolution gets average pooling over space as well, which saves less still;
the hidden width is the rank; where k does not divide the channels, the next larger divisor does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapters.adapter import Adapter
from s2a_edge.pack.blocks import Block
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import MICROSOFT, RECOMPUTE_KEY, shape_of
from s2a_edge.pack.layout import channel_axis


@dataclass(frozen=True)
class _Map:
    """Shape and channel axis of one end of a block."""

    shape: tuple[int, ...]
    axis: int

    @classmethod
    def of(cls, value: ir.Value) -> _Map:
        return cls(shape_of(value), channel_axis(value))

    @property
    def last(self) -> bool:
        """Whether channels are the last axis: tokens."""
        return self.axis == len(self.shape) - 1

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def space(self) -> tuple[int, ...]:
        """All axes but batch and channels."""
        return tuple(d for i, d in enumerate(self.shape) if i not in (0, self.axis))


class LiteSideBranch(Adapter):
    """See the module."""

    def beside(self, block: Block, x: ir.Value, y: ir.Value) -> ir.Value:
        """``y`` plus the branch; ``y`` itself where the block's ends do not fit each other."""
        cut, before, after = _wanted_part(block), _Map.of(block.input), _Map.of(block.output)
        if cut is not None:
            self.bench.g.module = f"{block.name}.lsb"
            x = self.bench.g.op("Slice", x, *cut.inputs[1:])
            before = _Map(after.shape, before.axis)
        window = _window(before.space, after.space)
        if window is None or (window and before.last and len(before.space) == 1):
            return y  # how tokens in a row would lie in space is not known
        g = self.bench.g
        g.module = f"{block.name}.lsb"
        z = _pooled(g, x, before, self.sizes.reduce)
        if max(window, default=1) > 1:
            z = _smaller(g, z, before, after, window)
        return self._add(z, y, before, after)

    def _add(self, z: ir.Value, y: ir.Value, before: _Map, after: _Map) -> ir.Value:
        """``y + U · relu(W z + b)``, in the layout of ``y``."""
        g, bench, hidden = self.bench.g, self.bench, self.sizes.rank
        module = g.module
        batch, positions = after.shape[0], math.prod(after.space)
        width = shape_of(z)[-1 if before.last else 1]
        point = [1] * len(before.space)
        shape = (hidden, width) if before.last else (hidden, width, *point)
        start = bench.rng.standard_normal(shape) * math.sqrt(2 / width)
        down = bench.train(f"{module}.down.weight", start.astype(np.float32), "lsb_down", module,
                           decay=True)
        offset = bench.train(f"{module}.down.bias", np.zeros(hidden, np.float32), "lsb_bias",
                             module, decay=False)
        point = [1] * len(after.space)
        shape = (after.channels, hidden) if after.last else (after.channels, hidden, *point)
        up = bench.train(f"{module}.up.weight", np.zeros(shape, np.float32), "lsb_up", module,
                         decay=True)
        first = len(g.nodes)
        if before.last:
            u = g.op("FusedMatMul", z, down, domain=MICROSOFT, transB=1)
            inner = g.op("Relu", g.op("Add", u, offset))
        else:
            inner = g.op("Relu", g.op("Conv", z, down, offset))
        if before.last != after.last:
            if not before.last:
                inner = g.op("Reshape", inner, g.constant([batch, hidden, positions]))
            inner = g.op("Transpose", inner, perm=[0, 2, 1])
        wanted = [batch * positions, hidden] if after.last else [batch, hidden, *after.space]
        if shape_of(inner) != tuple(wanted):
            inner = g.op("Reshape", inner, g.constant(wanted))
        for node in g.nodes[first:]:
            node.metadata_props[RECOMPUTE_KEY] = "1"
        if not after.last:
            return g.op("Add", y, g.op("Conv", inner, up))
        flat = g.op("Reshape", y, g.constant([batch * positions, after.channels]))
        return g.op("Reshape", g.op("Gemm", inner, up, flat, transB=1),
                    g.constant(list(shape_of(y))))


def _wanted_part(block: Block) -> ir.Node | None:
    """The Slice that leaves the tokens of the output, where the block drops the others on its way.

    The last block of a backbone whose features are its class token does (``normalize.narrow``).
    """
    before, after = shape_of(block.input), shape_of(block.output)
    if before == after:
        return None
    cuts = [n for n in block.nodes if n.op_type == "Slice" and len(n.inputs) == 4
            and shape_of(n.outputs[0]) == after and n.inputs[0] is not None
            and shape_of(n.inputs[0]) == before]
    return next((n for n in cuts if n.inputs[0] is block.input), next(iter(cuts), None))


def _window(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many positions along each axis become one; None where the block is no such reduction."""
    if math.prod(before) == math.prod(after):
        return ()
    if len(before) != len(after):
        return None
    window = tuple(-(-a // b) for a, b in zip(before, after, strict=True))
    return window if all(-(-a // w) == b for a, b, w in zip(before, after, window, strict=True)) \
        else None


def _pooled(g: GraphBuilder, x: ir.Value, before: _Map, reduce: int) -> ir.Value:
    """CAP: [N, tokens, C] -> [N, tokens, C/k], or [N, C, *space] -> [N, C/k, *space]."""
    channels, batch = before.channels, before.shape[0]
    k = next(k for k in range(min(reduce, channels), channels + 1) if channels % k == 0)
    positions = math.prod(before.space)
    if before.last:
        groups = g.op("Reshape", x, g.constant([batch, positions, channels // k, k]))
        return g.op("ReduceMean", groups, g.constant([3]), keepdims=0)
    groups = g.op("Reshape", x, g.constant([batch, channels // k, k, positions]))
    pooled = g.op("ReduceMean", groups, g.constant([2]), keepdims=0)
    return g.op("Reshape", pooled, g.constant([batch, channels // k, *before.space]))


def _smaller(g: GraphBuilder, z: ir.Value, before: _Map, after: _Map, window: tuple[int, ...],
             ) -> ir.Value:
    """Average pooling over space, to the resolution behind the block."""
    rank = 2 + len(window)
    if before.last:
        z = g.op("Reshape", z, g.constant([before.shape[0], *before.space, shape_of(z)[-1]]))
        z = g.op("Transpose", z, perm=[0, rank - 1, *range(1, rank - 1)])
    z = g.op("AveragePool", z, kernel_shape=list(window), strides=list(window), ceil_mode=1)
    if before.last:
        z = g.op("Transpose", z, perm=[0, *range(2, rank), 1])
        z = g.op("Reshape", z, g.constant([before.shape[0], math.prod(after.space),
                                           shape_of(z)[-1]]))
    return z
