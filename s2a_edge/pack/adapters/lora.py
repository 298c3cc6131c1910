"""LoRA (arXiv 2106.09685), to be compared with: y = W x + (alpha / r) · B A x.

Every product with a frozen matrix and every ungrouped convolution gets one; A is drawn, B starts
at zero. Unlike S2A's adapters it needs the layer's input in the backward, for dA = Bᵀ dy xᵀ, and
A x for dB: that is what it costs in memory.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapters.adapter import Adapter
from s2a_edge.pack.adapters.affine import is_linear
from s2a_edge.pack.graph import MICROSOFT, module_of, shape_of


class Lora(Adapter):
    """See the module."""

    def behind(self, node: ir.Node, x: ir.Value | None, y: ir.Value) -> ir.Value:
        """``y`` plus the low-rank update of a linear layer or convolution."""
        assert x is not None
        if is_linear(node) and not node.attributes.get_int("transA", 0):
            return self._linear(node, x, y)
        kernel = node.inputs[1] if len(node.inputs) > 1 else None
        if (node.domain, node.op_type) == ("", "Conv") and kernel is not None \
                and kernel.const_value is not None and node.attributes.get_int("group", 1) == 1:
            return self._convolution(node, x, y)
        return y

    def _linear(self, node: ir.Node, x: ir.Value, y: ir.Value) -> ir.Value:
        g = self.bench.g
        a, b = self._matrices(node, (self.sizes.rank, shape_of(x)[-1]), shape_of(y)[-1:])
        inner = g.op("FusedMatMul", x, a, domain=MICROSOFT, transB=1)
        return g.op("Add", y, g.op("FusedMatMul", inner, b, domain=MICROSOFT, transB=1,
                                   alpha=self.sizes.alpha / self.sizes.rank))

    def _convolution(self, node: ir.Node, x: ir.Value, y: ir.Value) -> ir.Value:
        g = self.bench.g
        kernel = node.inputs[1]
        assert kernel is not None
        shape = shape_of(kernel)
        a, b = self._matrices(node, (self.sizes.rank, *shape[1:]),
                              (shape[0], *[1] * len(shape[2:])))
        attributes = {k: v.value for k, v in node.attributes.items()}
        inner = g.op("Conv", x, a, **attributes)
        scale = g.constant(self.sizes.alpha / self.sizes.rank)
        return g.op("Add", y, g.op("Conv", g.op("Mul", inner, scale), b))

    def _matrices(self, node: ir.Node, a_shape: tuple[int, ...], out: tuple[int, ...],
                  ) -> tuple[ir.Value, ir.Value]:
        """A, uniform within 1/sqrt(inputs) (PyTorch's start of a linear layer), and B = 0."""
        module = f"{module_of(node)}.lora"
        self.bench.g.module = module
        limit = 1 / math.sqrt(math.prod(a_shape[1:]))
        start = self.bench.rng.uniform(-limit, limit, a_shape).astype(np.float32)
        a = self.bench.train(f"{module}.A", start, "lora_a", module, decay=True)
        b = self.bench.train(f"{module}.B",
                             np.zeros((out[0], self.sizes.rank, *out[1:]), np.float32), "lora_b",
                             module, decay=True)
        return a, b
