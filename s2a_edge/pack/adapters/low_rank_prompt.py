"""LRP, the low-rank prompt of S2A (arXiv 2503.08154): y = x + A·B on the residual stream.

A is [tokens, r], B [r, channels]; the product does not depend on the input, so its gradient needs
nothing saved: with D the gradient of y summed over the batch, dA = D Bᵀ and dB = Aᵀ D.

The paper's text leaves open where it stands and how it starts. Our reading: behind each chosen
block, at that block's resolution (H·W tokens of a feature map; with windowed attention the tokens
of the whole stage, not of one window; behind the last block of a class-token backbone the class
token alone, since no other is computed there). B starts at zero, which makes it a no-op; A is drawn
N(0, 1/r), so that a step of Adam on B moves y about as much as the same step on a bias would.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapters.adapter import Adapter
from s2a_edge.pack.blocks import Block
from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.layout import channel_axis


class LowRankPrompt(Adapter):
    """See the module."""

    def beside(self, block: Block, x: ir.Value, y: ir.Value) -> ir.Value:
        """``y`` plus the prompt."""
        g, rank = self.bench.g, self.sizes.rank
        shape, axis = shape_of(y), channel_axis(block.output)
        channels = shape[axis]
        tokens = math.prod(shape[1:]) // channels
        module = f"{block.name}.lrp"
        start = self.bench.rng.standard_normal((tokens, rank)) / math.sqrt(rank)
        a = self.bench.train(f"{module}.A", start.astype(np.float32), "lrp_a", module, decay=True)
        b = self.bench.train(f"{module}.B", np.zeros((rank, channels), np.float32), "lrp_b", module,
                             decay=True)
        g.module = module
        if axis == len(shape) - 1:
            prompt = g.op("MatMul", a, b)
        else:
            prompt = g.op("FusedMatMul", b, a, domain=MICROSOFT, transA=1, transB=1)
        if shape_of(prompt) != shape[1:]:
            prompt = g.op("Reshape", prompt, g.constant(list(shape[1:])))
        return g.op("Add", y, prompt)
