"""Temporaries that kernels take from the arena while they run, as formulas of shapes.

Facts of onnxruntime's CPU provider on x86-64 without prepacking, measured like those of
``kernel_memory``; only convolutions differ between versions. Every operator that is not named here
was measured to take nothing: MatMul, Gemm, FusedMatMul, reductions over any axes, Transpose,
LayerNormalization, Slice, Pad, pooling, QuantizeLinear and DequantizeLinear (4-bit ones too), and
all elementwise operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of, nbytes_of, shape_of

_FLOAT_BYTES = 4
# MLAS expands this much of a convolution's patches at a time and thread: 128 × 128 floats.
_CONV_TILE_BYTES = 128 * 128 * _FLOAT_BYTES
# Multiplications that are worth a thread of their own, and how thread slices are aligned.
_MULTIPLICATIONS_PER_THREAD = 64 * 1024
_THREAD_ALIGN = 16
# Versions that changed how convolutions are spread over threads.
_THREADS_SHARE_IMAGES = (1, 23)
_TILES_SUFFICE = (1, 27)


@dataclass(frozen=True)
class Runtime:
    """The onnxruntime that a plan is for.

    Attributes:
        threads: intra-op threads of the session.
        version: major and minor number.
    """

    threads: int
    version: tuple[int, int]


@dataclass(frozen=True)
class Workspaces:
    """Bytes of each temporary: taken before the outputs and after them; all released at the end."""

    before_bytes: tuple[int, ...] = ()
    after_bytes: tuple[int, ...] = ()


def workspaces_of(node: ir.Node, runtime: Runtime) -> Workspaces:
    """The temporaries of ``node``.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    formula = _FORMULAS.get(node.op_type) if node.domain == "" else None
    return Workspaces() if formula is None else formula(node, runtime)


def _conv(node: ir.Node, runtime: Runtime) -> Workspaces:
    """X [N, C, *in], W [M, C/group, *kernel] -> Y [N, M, *out].

    A point-wise convolution needs nothing; one with few output positions all patches of an image
    at once, [C/group·kernel, out]; any other a tile per thread. From 1.23 to 1.26, threads that
    share out images or groups hold all patches of theirs.
    """
    weight, out = shape_of(_operand(node, 1)), shape_of(node.outputs[0])
    group = node.attributes.get_int("group", 1)
    filters, positions, depth = weight[0] // group, prod(out[2:]), prod(weight[1:])
    if _reads_input_directly(node):
        return Workspaces()
    if filters > positions:
        return Workspaces(after_bytes=(positions * depth * _FLOAT_BYTES,))
    tile = _CONV_TILE_BYTES
    if runtime.version >= _THREADS_SHARE_IMAGES and out[0] * group > 1:
        used = min(runtime.threads, out[0] * group)
        if runtime.version < _TILES_SUFFICE:
            tile = max(tile, positions * depth * _FLOAT_BYTES, positions * filters * _FLOAT_BYTES)
    else:
        used = _conv_threads(filters * positions * depth, positions, runtime.threads)
    return Workspaces(after_bytes=(used * tile,))


def _reads_input_directly(node: ir.Node) -> bool:
    """Whether the patches of a convolution are the input itself."""
    x, weight = shape_of(_operand(node, 0)), shape_of(_operand(node, 1))
    kernel = weight[2:]
    strides = node.attributes.get_ints("strides", [1] * len(kernel))
    pads = node.attributes.get_ints("pads", [0] * 2 * len(kernel))
    if any(s != 1 for s in strides) or any(p != 0 for p in pads):
        return False
    if prod(kernel) == 1:
        return True
    dilations = node.attributes.get_ints("dilations", [1] * len(kernel))
    if len(kernel) != 2 or any(d != 1 for d in dilations) or weight[1] != 1:
        return False
    return kernel[1] == x[3] or (kernel[0] == x[2] and kernel[1] == 1)


def _conv_threads(multiplications: int, positions: int, threads: int) -> int:
    """How many threads MLAS gives to one image: slices of output positions, 16 at least."""
    wanted = min(multiplications // _MULTIPLICATIONS_PER_THREAD + 1, threads)
    if wanted == 1:
        return 1
    slice_positions = -(-positions // wanted)
    slice_positions = -(-slice_positions // _THREAD_ALIGN) * _THREAD_ALIGN
    if slice_positions >= positions:
        return 1
    return wanted - 1 if slice_positions * (wanted - 1) >= positions else wanted


def _conv_transpose(node: ir.Node, runtime: Runtime) -> Workspaces:
    """X [N, C, *in], W [C, M/group, *kernel]: columns of one image, [M/group·kernel, in]."""
    x, weight = shape_of(_operand(node, 0)), shape_of(_operand(node, 1))
    return Workspaces(after_bytes=(prod(weight[1:]) * prod(x[2:]) * _FLOAT_BYTES,))


def _softmax(node: ir.Node, runtime: Runtime) -> Workspaces:
    """Along another axis than the last: transposed copies of the input and of the output."""
    x = _operand(node, 0)
    rank = len(shape_of(x))
    if node.attributes.get_int("axis", -1) % rank == rank - 1:
        return Workspaces()
    return Workspaces(after_bytes=(nbytes_of(x), nbytes_of(x)))


def _where(node: ir.Node, runtime: Runtime) -> Workspaces:
    """Both branches are materialized, each broadcast with the condition."""
    return Workspaces(before_bytes=tuple(
        _broadcast_bytes([_operand(node, 0), _operand(node, i)], node.outputs[0])
        for i in (1, 2)))


def _resize(node: ir.Node, runtime: Runtime) -> Workspaces:
    """Linear: two indices and two weights per output position of the last two (or three) axes.

    Indices have 4 bytes (8). With antialiasing there are a window of weights per position instead,
    and one image whose last axis has its new size already.
    """
    mode = node.attributes.get_string("mode", "nearest")
    antialias = node.attributes.get_int("antialias", 0) != 0
    x, y = shape_of(_operand(node, 0)), shape_of(node.outputs[0])
    resized = 2 if len(x) in (2, 4) else 3
    if mode == "nearest" or not (antialias or mode == "linear"):
        return Workspaces()
    if not antialias:
        position_bytes = 2 * _FLOAT_BYTES + 2 * (4 if resized == 2 else 8)
        return Workspaces(after_bytes=(position_bytes * sum(y[-resized:]),))
    reach = 1 if mode == "linear" else 2  # positions on each side, times the scale when shrinking
    windows = [(2 * ceil(reach * max(1.0, before / after)) + 1) * after * _FLOAT_BYTES
               for before, after in zip(x[-resized:], y[-resized:], strict=True)]
    image = prod(x[1:-1]) * y[-1] * _FLOAT_BYTES
    return Workspaces(after_bytes=(*windows, image))


def _variadic(node: ir.Node, runtime: Runtime) -> Workspaces:
    """Operands are combined from the left; every result but the last is a temporary.

    The runtime holds two of them at a time; all are counted here, which is more from five
    operands on.
    """
    operands = [v for v in node.inputs if v is not None]
    return Workspaces(before_bytes=tuple(
        _broadcast_bytes(operands[:n], node.outputs[0]) for n in range(2, len(operands))))


def _broadcast_bytes(operands: list[ir.Value], result: ir.Value) -> int:
    shape = np.broadcast_shapes(*(shape_of(v) for v in operands))
    return (prod(shape) * dtype_of(result).bitwidth + 7) // 8


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, f"operand {index} of {node.op_type} is required"
    return value


_FORMULAS: dict[str, Callable[[ir.Node, Runtime], Workspaces]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "LogSoftmax": _softmax, "Max": _variadic,
    "Mean": _variadic, "Min": _variadic, "Resize": _resize, "Softmax": _softmax, "Sum": _variadic,
    "Where": _where,
}  # fmt: skip
