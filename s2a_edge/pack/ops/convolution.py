"""Convolution. With a frozen kernel the backward needs the kernel alone, else the input too.

Letters: N batch, C in-channels, M out-channels, H W in, P Q out, K kernel.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, shape_of
from s2a_edge.pack.ops.linear import at_hand
from s2a_edge.pack.rule import (
    Backward,
    Forward,
    Gradients,
    Rule,
    int_attribute,
    ints_attribute,
    is_constant,
    reshape,
)

FLOAT_BYTES = 4
# ConvTranspose makes the columns of a whole image in memory of its own. Where they would be more
# than this, channels are taken in parts: some per cent slower (BENCHMARKS.md).
MOST_COLUMNS_BYTES = 2**20


def _conv_refuses(node: ir.Node) -> str | None:
    return None if at_hand(node.inputs[1]) else "a computed kernel"


def _conv_forward(f: Forward) -> tuple[ir.Value, ...]:
    if f.needs[1] and not at_hand(f.node.inputs[0]):
        f.save("x", f.x(), "activation")
    return f.emit()


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
    reaches = [(k - 1) * d for k, d in zip(w_shape[2:], dilations, strict=True)]
    columns_bytes = math.prod(w_shape[1:]) * math.prod(shape_of(dy)[2:]) * FLOAT_BYTES
    if (group == 1 and set(strides) == {1} and math.prod(w_shape) * FLOAT_BYTES < columns_bytes
            and all(p <= reach for p, reach in zip(pads, reaches * 2, strict=True))):
        return _flipped(b, w, dilations, [reach - p for p, reach in
                                          zip(pads, reaches * 2, strict=True)])
    parts = _channel_parts(w_shape[1], columns_bytes) if group == 1 else 1
    pieces = (w,) if parts == 1 else g.multi(
        "Split", [w, g.constant([w_shape[1] // parts] * parts)], parts, axis=1)
    made = [g.op("ConvTranspose", dy, piece, strides=strides, dilations=dilations, pads=pads,
                 group=group, output_padding=extra if any(extra) else None) for piece in pieces]
    return made[0] if parts == 1 else g.op("Concat", *made, axis=1)


def _flipped(b: Backward, w: ir.Value, dilations: list[int], pads: list[int]) -> ir.Value:
    """dX of a convolution of stride 1: the convolution of dY with the kernel turned around.

    It reads patches a tile at a time, where ConvTranspose makes all columns of an image first.
    """
    g = b.g
    axes = list(range(2, len(b.shape(1))))
    turned = g.op("Slice", g.op("Transpose", w, perm=[1, 0, *axes]), g.constant([-1] * len(axes)),
                  g.constant([-n - 1 for n in b.shape(1)[2:]]), g.constant(axes),
                  g.constant([-1] * len(axes)))
    return g.op("Conv", b.dy, turned, dilations=dilations, pads=pads)


def _channel_parts(channels: int, columns_bytes: int) -> int:
    """Into how many parts the result's channels go, so that columns of each are small."""
    parts = 1
    while channels % (2 * parts) == 0 and columns_bytes // parts > MOST_COLUMNS_BYTES:
        parts *= 2
    return parts


def _kernel_gradient(b: Backward) -> ir.Value:
    """dW [M, C/group, *K] of Y [N, M, *P] by X [N, C, *H]."""
    x = b.weight(0) if at_hand(b.node.inputs[0]) else b.saved("x")
    kernel = b.shape(1)[2:]
    strides = ints_attribute(b.node, "strides", [1] * len(kernel))
    pads = conv_pads(b.node, b.shape(0), kernel, b.out_shape())
    if math.prod(kernel) == 1 and not any(pads) and int_attribute(b.node, "group", 1) == 1:
        return _point_kernel_gradient(b, x, strides)
    return _window_kernel_gradient(b, x, strides, pads)


def _point_kernel_gradient(b: Backward, x: ir.Value, strides: list[int]) -> ir.Value:
    # 1x1: dW = Σ_n dY[n] X[n]ᵀ, a batch of products; or one product of transposed copies, where
    # those are smaller than the batch's results.
    g, dy = b.g, b.dy
    spatial = len(strides)
    if set(strides) != {1}:
        stops = [(n - 1) * s + 1 for n, s in zip(b.out_shape()[2:], strides, strict=True)]
        x = g.op("Slice", x, g.constant([0] * spatial), g.constant(stops),
                 g.constant(list(range(2, 2 + spatial))), g.constant(strides))
    (n, c), (m, positions) = shape_of(x)[:2], (b.out_shape()[1], math.prod(b.out_shape()[2:]))
    x, dy = reshape(g, x, (n, c, positions)), reshape(g, dy, (n, m, positions))
    if n > 1 and m * c > positions * (m + c):
        x, dy = (reshape(g, g.op("Transpose", v, perm=[1, 0, 2]), (shape_of(v)[1], n * positions))
                 for v in (x, dy))
    dw = g.op("FusedMatMul", dy, x, domain=MICROSOFT, transB=1)
    if len(shape_of(dw)) == 3:
        dw = g.op("ReduceSum", dw, g.constant([0]), keepdims=0)
    return reshape(g, dw, b.shape(1))


def _window_kernel_gradient(b: Backward, x: ir.Value, strides: list[int], pads: list[int],
                            ) -> ir.Value:
    # Samples and channels change places: dW is the convolution of X with dY as its kernel, where
    # strides and dilations change places too. X's groups stand beside each other as channels.
    g = b.g
    group = int_attribute(b.node, "group", 1)
    (n, c), out, kernel = b.shape(0)[:2], b.out_shape(), b.shape(1)[2:]
    axes = list(range(2, 2 + len(kernel)))
    dilations = ints_attribute(b.node, "dilations", [1] * len(kernel))
    if group > 1:
        x = reshape(g, x, (n, group, c // group, *b.shape(0)[2:]))
        x = g.op("Transpose", x, perm=[2, 1, 0, *(a + 1 for a in axes)])
        x = reshape(g, x, (c // group, group * n, *b.shape(0)[2:]))
    else:
        x = g.op("Transpose", x, perm=[1, 0, *axes])
    dy = reshape(g, g.op("Transpose", b.dy, perm=[1, 0, *axes]), (out[1], n, *out[2:]))
    dw = g.op("Conv", x, dy, strides=dilations, dilations=strides, pads=pads, group=group)
    if shape_of(dw)[2:] != kernel:  # positions that the strides left over
        dw = g.op("Slice", dw, g.constant([0] * len(kernel)), g.constant(list(kernel)),
                  g.constant(axes))
    return g.op("Transpose", dw, perm=[1, 0, *axes])


def _conv_backward(b: Backward) -> Gradients:
    grads: list[ir.Value | None] = [None] * len(b.needs)
    if b.needs[1]:
        grads[1] = _kernel_gradient(b)
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
    if node.attributes.get_ints("output_shape"):
        return "output_shape"
    return None if is_constant(node.inputs[1]) else "a kernel that is not frozen"


RULES = {
    ("", "Conv"): Rule(_conv_backward, _conv_forward, _conv_refuses),
    ("", "ConvTranspose"): Rule(_conv_transpose_backward, refuses=_conv_transpose_refuses),
}
