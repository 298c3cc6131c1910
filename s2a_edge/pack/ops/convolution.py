"""Convolution. With a frozen kernel the backward needs the kernel alone.

Letters: N batch, C in-channels, M out-channels, H W in, P Q out, K kernel.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.rule import (
    Backward,
    Gradients,
    Rule,
    int_attribute,
    ints_attribute,
    is_constant,
    reshape,
)


def _conv_refuses(node: ir.Node) -> str | None:
    kernel = node.inputs[1]
    return None if is_constant(kernel) else "a kernel that is not frozen"


def conv_pads(node: ir.Node, in_shape: tuple[int, ...], kernel: tuple[int, ...],
              out_shape: tuple[int, ...]) -> list[int]:
    """Explicit padding [begin.., end..] of a Conv or pooling node, auto_pad resolved."""
    spatial = len(kernel)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return ints_attribute(node, "pads", [0] * 2 * spatial) if auto == "NOTSET" \
            else [0] * 2 * spatial
    strides = ints_attribute(node, "strides", [1] * spatial)
    dilations = ints_attribute(node, "dilations", [1] * spatial)
    begin, end = [], []
    for i in range(spatial):
        reach = (kernel[i] - 1) * dilations[i] + 1
        total = max((out_shape[2 + i] - 1) * strides[i] + reach - in_shape[2 + i], 0)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin + end


def _input_gradient(b: Backward) -> ir.Value:
    g, dy, w = b.g, b.dy, b.weight(1)
    w_shape, x_shape = b.shape(1), b.shape(0)
    spatial = len(w_shape) - 2
    strides = ints_attribute(b.node, "strides", [1] * spatial)
    dilations = ints_attribute(b.node, "dilations", [1] * spatial)
    pads = conv_pads(b.node, x_shape, w_shape[2:], b.out_shape())
    group = int_attribute(b.node, "group", 1)
    if group == 1 and math.prod(w_shape[2:]) == 1 and not any(pads) and set(strides) == {1}:
        # 1x1: dX[n] = Wᵀ dY[n], a product that needs no column buffer.
        matrix = reshape(g, w, w_shape[:2])
        columns = reshape(g, dy, (*shape_of(dy)[:2], math.prod(shape_of(dy)[2:])))
        dx = g.op("FusedMatMul", matrix, columns, domain=MICROSOFT, transA=1)
        return reshape(g, dx, x_shape)
    # What the strides left over at the far edge comes back as output padding.
    extra = [x_shape[2 + i] - (strides[i] * (shape_of(dy)[2 + i] - 1)
                               + (w_shape[2 + i] - 1) * dilations[i] + 1
                               - pads[i] - pads[spatial + i]) for i in range(spatial)]
    return g.op("ConvTranspose", dy, w, strides=strides, dilations=dilations, pads=pads,
                group=group, output_padding=extra if any(extra) else None)


def _conv_backward(b: Backward) -> Gradients:
    grads: list[ir.Value | None] = [None] * len(b.needs)
    if len(b.needs) > 2 and b.needs[2]:
        axes = [0, *range(2, len(b.out_shape()))]
        grads[2] = b.g.op("ReduceSum", b.dy, b.g.constant(axes), keepdims=0)
    if b.needs[0]:
        grads[0] = _input_gradient(b)
    return grads


def _conv_transpose_backward(b: Backward) -> Gradients:
    # The adjoint of ConvTranspose is Conv with the same kernel.
    grads: list[ir.Value | None] = [None] * len(b.needs)
    if len(b.needs) > 2 and b.needs[2]:
        axes = [0, *range(2, len(b.out_shape()))]
        grads[2] = b.g.op("ReduceSum", b.dy, b.g.constant(axes), keepdims=0)
    if b.needs[0]:
        spatial = len(b.shape(1)) - 2
        dx = b.g.op("Conv", b.dy, b.weight(1),
                    strides=ints_attribute(b.node, "strides", [1] * spatial),
                    dilations=ints_attribute(b.node, "dilations", [1] * spatial),
                    pads=ints_attribute(b.node, "pads", [0] * 2 * spatial),
                    group=int_attribute(b.node, "group", 1))
        grads[0] = dx
    return grads


def _conv_transpose_refuses(node: ir.Node) -> str | None:
    auto = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    if auto.startswith("SAME"):
        return f"auto_pad {auto}"
    return "output_shape" if node.attributes.get_ints("output_shape") else _conv_refuses(node)


RULES = {
    ("", "Conv"): Rule(_conv_backward, refuses=_conv_refuses),
    ("", "ConvTranspose"): Rule(_conv_transpose_backward, refuses=_conv_transpose_refuses),
}
