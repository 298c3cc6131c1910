"""Samples of every operator that has a rule: shapes, attributes, and PyTorch's own version.

A sample is an operator on named inputs. ``open`` inputs are differentiated for; ``frozen`` ones
are constants. ``torch`` computes the same from the open inputs, for autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows

from s2a_edge.pack.graph import MICROSOFT
from tests.pack.ops import samples_activation, samples_arithmetic, samples_maps, samples_moves
from tests.pack.ops.sample import Sample, frozen, ints

T = torch.tensor

W34, W54, V4 = frozen(3, 4), frozen(5, 4), frozen(4)
K = frozen(6, 3, 3, 3)
K1 = frozen(6, 4, 1, 1)
KD = frozen(4, 1, 3, 3)
KT = frozen(3, 5, 2, 2)
LN_W = frozen(6)


def _matmul(ta: bool, tb: bool) -> Callable[..., Any]:
    def run(a: Any, b: Any) -> Any:
        return 0.5 * ((a.mT if ta else a) @ (b.mT if tb else b))
    return run


def _fused(ta: int, tb: int) -> Sample:
    a = (2, 4, 3) if ta else (2, 3, 4)
    b = (2, 5, 4) if tb else (2, 4, 5)
    return Sample("FusedMatMul", (a, b), _matmul(bool(ta), bool(tb)),
                  {"transA": ta, "transB": tb, "alpha": 0.5}, domain=MICROSOFT,
                  note=f"{ta}{tb}")


def _gemm(ta: int, tb: int) -> Sample:
    a, b = ((4, 3) if ta else (3, 4)), ((5, 4) if tb else (4, 5))
    return Sample("Gemm", (a, b, (5,)), lambda x, w, c: 0.5 * (x.T if ta else x) @ (
        w.T if tb else w) + 2.0 * c, {"transA": ta, "transB": tb, "alpha": 0.5, "beta": 2.0},
        note=f"{ta}{tb}")


LINEAR = [
    Sample("MatMul", ((2, 3, 4), (2, 4, 5)), torch.matmul),
    Sample("MatMul", ((2, 3, 4), (4, 5)), torch.matmul, note="shared"),
    Sample("MatMul", ((1, 3, 4), (2, 4, 5)), torch.matmul, note="broadcast"),
    Sample("MatMul", ((3, 1, 3, 4), (2, 4, 1)), torch.matmul, note="ranks"),
    Sample("MatMul", ((4,), (4,)), torch.matmul, note="vectors"),
    Sample("MatMul", ((4,), (2, 4, 5)), torch.matmul, note="row"),
    Sample("MatMul", ((2, 3, 4), (4,)), torch.matmul, note="column"),
    Sample("MatMul", ((2, 5, 3), W34), lambda x: x @ T(W34).to(x)),
    Sample("MatMul", (W54, (2, 4, 3)), lambda x: T(W54).to(x) @ x, note="left-frozen"),
    *(_fused(ta, tb) for ta in (0, 1) for tb in (0, 1)),
    Sample("FusedMatMul", ((2, 3, 4), W54), lambda x: x @ T(W54).to(x).T, {"transB": 1},
           domain=MICROSOFT),
    Sample("FusedMatMul", ((2, 1, 3, 4), (2, 5, 4)), lambda a, b: a @ b.mT, {"transB": 1},
           domain=MICROSOFT, note="ranks"),
    Sample("FusedMatMul", ((1, 4, 3), (2, 4, 1)), lambda a, b: a.mT @ b, {"transA": 1},
           domain=MICROSOFT, note="broadcast"),
    *(_gemm(ta, tb) for ta in (0, 1) for tb in (0, 1)),
    Sample("Gemm", ((3, 4), W54), lambda x: x @ T(W54).to(x).T, {"transB": 1}),
    Sample("Gemm", ((3, 4), W54, (1, 5)), lambda x, c: x @ T(W54).to(x).T + c, {"transB": 1}),
]

ELEMENTWISE = [
    Sample("Add", ((2, 3, 4), (4,)), torch.add),
    Sample("Add", ((2, 1, 4), (3, 1)), torch.add),
    Sample("Add", ((2, 3), V4[:3]), lambda x: x + T(V4[:3]).to(x)),
    Sample("Sub", ((2, 3), (1, 3)), torch.sub),
    Sample("Sub", ((), (3,)), torch.sub, note="scalar"),
    Sample("Mul", ((2, 3, 4), (3, 1)), torch.mul),
    Sample("Mul", ((2, 4), V4), lambda x: x * T(V4).to(x)),
    Sample("Div", ((2, 3), (2, 1)), torch.div, positive=True),
    Sample("Div", ((2, 4), V4), lambda x: x / T(V4).to(x)),
    Sample("Div", (np.asarray(2.0), (2, 4)), lambda x: 2.0 / x, positive=True),
    Sample("Neg", ((2, 3),), torch.neg),
    Sample("Identity", ((2, 3),), lambda x: x * 1.0),
    Sample("Pow", ((2, 3), np.asarray(2.0)), lambda x: x**2, note="2"),
    Sample("Pow", ((2, 3), np.asarray(0.5)), lambda x: x**0.5, positive=True, note="0.5"),
    Sample("Pow", ((2, 3), np.asarray(3.0)), lambda x: x**3, note="3"),
    Sample("Sqrt", ((2, 3),), torch.sqrt, positive=True),
    Sample("Exp", ((2, 3),), torch.exp),
    Sample("Reciprocal", ((2, 3),), torch.reciprocal, positive=True),
]

ACTIVATION = [
    Sample("Gelu", ((3, 5),), F.gelu, spread=2.0),
    Sample("Gelu", ((3, 5),), lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"},
           spread=2.0, note="tanh"),
    Sample("Sigmoid", ((3, 5),), torch.sigmoid, spread=2.0),
    Sample("Tanh", ((3, 5),), torch.tanh),
    Sample("Erf", ((3, 5),), torch.erf),
    Sample("HardSwish", ((4, 5),), F.hardswish, spread=3.0),
    Sample("Softplus", ((3, 5),), F.softplus),
    Sample("Mish", ((3, 5),), F.mish, spread=2.0),
    Sample("Softsign", ((3, 5),), F.softsign),
    Sample("Relu", ((3, 5),), F.relu),
    Sample("LeakyRelu", ((3, 5),), lambda x: F.leaky_relu(x, 0.1), {"alpha": 0.1}),
    Sample("HardSigmoid", ((4, 5),), F.hardsigmoid, {"alpha": 1 / 6, "beta": 0.5}, spread=3.0),
    Sample("Clip", ((4, 5), np.asarray(0.0), np.asarray(1.5)), lambda x: x.clamp(0.0, 1.5),
           spread=2.0),
    Sample("Clip", ((4, 5), None, np.asarray(0.5)), lambda x: x.clamp(max=0.5)),
    Sample("Clip", ((4, 5), np.asarray(-0.5)), lambda x: x.clamp(min=-0.5)),
]

NORMALIZATION = [
    Sample("LayerNormalization", ((2, 3, 6), (6,), (6,)),
           lambda x, w, b: F.layer_norm(x, (6,), w, b), {"axis": -1, "epsilon": 1e-5}),
    Sample("LayerNormalization", ((2, 3, 6), LN_W, (6,)),
           lambda x, b: F.layer_norm(x, (6,), T(LN_W).to(x), b), {"axis": 2, "epsilon": 1e-5}),
    Sample("LayerNormalization", ((2, 3, 6), LN_W),
           lambda x: F.layer_norm(x, (6,), T(LN_W).to(x)), {"epsilon": 1e-5}, note="no-bias"),
    Sample("LayerNormalization", ((2, 3, 1, 6), frozen(1, 6)),
           lambda x: F.layer_norm(x, (1, 6), T(frozen(1, 6)).to(x)),
           {"axis": -2, "epsilon": 1e-5}),
    Sample("LpNormalization", ((2, 3, 6),), lambda x: F.normalize(x, dim=-1), {"axis": -1}),
    Sample("LpNormalization", ((2, 4, 1),), lambda x: F.normalize(x, dim=1), {"axis": 1}),
    Sample("RMSNormalization", ((2, 3, 6), (6,)),
           lambda x, w: F.rms_norm(x, (6,), w, 1e-5), {"axis": -1, "epsilon": 1e-5}),
    Sample("RMSNormalization", ((2, 1, 6), LN_W),
           lambda x: F.rms_norm(x, (6,), T(LN_W).to(x), 1e-3), {"axis": 2, "epsilon": 1e-3}),
    Sample("RMSNormalization", ((2, 3, 6), frozen(3, 6)),
           lambda x: F.rms_norm(x, (3, 6), T(frozen(3, 6)).to(x), 1e-5), {"axis": -2},
           note="two-axes"),
    Sample("Softmax", ((2, 3, 5),), lambda x: x.softmax(-1), {"axis": -1}),
    Sample("Softmax", ((2, 3, 5),), lambda x: x.softmax(1), {"axis": 1}),
]

SHAPING = [
    Sample("Reshape", ((2, 3, 4), ints(6, 4)), lambda x: x.reshape(6, 4)),
    Sample("Reshape", ((2, 3, 4), ints(0, -1)), lambda x: x.reshape(2, 12)),
    Sample("Flatten", ((2, 3, 4),), lambda x: x.reshape(2, 12), {"axis": 1}),
    Sample("Squeeze", ((2, 1, 4), ints(-2)), lambda x: x.squeeze(1)),
    Sample("Unsqueeze", ((2, 4), ints(0, -1)), lambda x: x[None, ..., None]),
    Sample("Transpose", ((2, 3, 4),), lambda x: x.permute(2, 0, 1), {"perm": [2, 0, 1]}),
    Sample("Transpose", ((2, 3, 4),), lambda x: x.permute(2, 1, 0), note="default"),
    Sample("Expand", ((1, 3, 1), ints(2, 3, 4)), lambda x: x.expand(2, 3, 4)),
    Sample("Expand", ((3, 1), ints(2, 1, 4)), lambda x: x.expand(2, 3, 4)),
    Sample("Concat", ((2, 1, 3), (2, 4, 3)), lambda a, b: torch.cat([a, b], 1), {"axis": 1}),
    Sample("Concat", ((2, 3), frozen(2, 2)), lambda a: torch.cat([a, T(frozen(2, 2)).to(a)], -1),
           {"axis": -1}),
    Sample("Split", ((2, 6), ints(1, 3, 2)), lambda x: x.split([1, 3, 2], 1), {"axis": 1},
           outputs=3),
    Sample("Split", ((6, 2), ints(3, 3)), lambda x: x.split([3, 3], 0), {"axis": -2}, outputs=2),
    Sample("Slice", ((2, 5, 4), ints(1), ints(4), ints(1)), lambda x: x[:, 1:4]),
    Sample("Slice", ((2, 5, 4), ints(-3, 0), ints(2**40, -1), ints(1, -1)),
           lambda x: x[:, -3:, :-1], note="negative"),
    Sample("Slice", ((2, 7), ints(1), ints(7), ints(1), ints(2)), lambda x: x[:, 1:7:2]),
    Sample("Slice", ((2, 7), ints(-1), ints(-(2**40)), ints(1), ints(-1)), lambda x: x.flip(1),
           note="reversed"),
    Sample("Slice", ((2, 7), ints(5), ints(0), ints(1), ints(-2)), lambda x: x[:, [5, 3, 1]],
           note="reversed-strided"),
    Sample("Gather", ((2, 5, 3), np.asarray(2)), lambda x: x[:, 2], {"axis": 1}),
    Sample("Gather", ((5, 3), ints(1, 2, 3)), lambda x: x[1:4], note="adjacent"),
    Sample("Gather", ((5, 3), np.array([[4, 0], [0, -1]])), lambda x: x[T([[4, 0], [0, 4]])],
           note="repeated"),
    Sample("Gather", ((2, 4), ints(3, 0)), lambda x: x[:, [3, 0]], {"axis": -1}),
    Sample("Pad", ((2, 3), ints(1, 0, 0, 2)), lambda x: F.pad(x, (0, 2, 1, 0))),
    Sample("Pad", ((2, 3), ints(1, 2), None, ints(-1)), lambda x: F.pad(x, (1, 2)), note="axes"),
]

REDUCTION = [
    Sample("ReduceSum", ((2, 3, 4), ints(1)), lambda x: x.sum(1, keepdim=True)),
    Sample("ReduceSum", ((2, 3, 4), ints(0, -1)), lambda x: x.sum((0, 2)), {"keepdims": 0}),
    Sample("ReduceSum", ((2, 3),), lambda x: x.sum(), {"keepdims": 0}, note="all"),
    Sample("ReduceMean", ((2, 3, 4), ints(-1)), lambda x: x.mean(-1, keepdim=True)),
    Sample("ReduceMean", ((2, 3, 4), ints(1, 2)), lambda x: x.mean((1, 2)), {"keepdims": 0}),
    Sample("GlobalAveragePool", ((2, 3, 4, 5),), lambda x: x.mean((2, 3), keepdim=True)),
]


def _conv(kernel: np.ndarray, **kw: Any) -> Callable[..., Any]:
    return lambda x, b=None: F.conv2d(x, T(kernel).to(x), b, **kw)


CONVOLUTION = [
    Sample("Conv", ((2, 3, 7, 6), K, (6,)), _conv(K, padding=1),
           {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
    Sample("Conv", ((2, 3, 8, 7), K), _conv(K, stride=2, padding=1),
           {"pads": [1, 1, 1, 1], "strides": [2, 2]}, note="strided"),
    Sample("Conv", ((1, 3, 9, 9), K), _conv(K, dilation=2), {"dilations": [2, 2]}),
    Sample("Conv", ((2, 4, 5, 5), K1, (6,)), _conv(K1)),
    Sample("Conv", ((2, 4, 5, 6), K1), _conv(K1, stride=2), {"strides": [2, 2]}, note="1x1s2"),
    Sample("Conv", ((2, 4, 5, 5), KD), _conv(KD, padding=1, groups=4),
           {"pads": [1, 1, 1, 1], "group": 4}, note="depthwise"),
    Sample("Conv", ((1, 3, 6, 6), K), lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), T(K).to(x),
                                                        stride=2),
           {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, note="same-upper", double=False),
    Sample("Conv", ((2, 3, 7, 6), (6, 3, 3, 3), (6,)), lambda x, w, b: F.conv2d(x, w, b, padding=1),
           {"pads": [1, 1, 1, 1]}, note="open"),
    Sample("Conv", ((3, 3, 8, 7), (6, 3, 3, 2)), lambda x, w: F.conv2d(x, w, stride=2, padding=1),
           {"pads": [1, 1, 1, 1], "strides": [2, 2]}, note="open-strided"),
    Sample("Conv", ((2, 3, 9, 10), (4, 3, 3, 3)), lambda x, w: F.conv2d(x, w, stride=2, dilation=2),
           {"strides": [2, 2], "dilations": [2, 2]}, note="open-dilated"),
    Sample("Conv", ((2, 4, 5, 5), (6, 4, 1, 1)), F.conv2d, note="open-1x1"),
    Sample("Conv", ((3, 8, 2, 1), (6, 8, 1, 1)), F.conv2d, note="open-1x1-deep"),
    Sample("Conv", ((2, 4, 5, 6), (6, 4, 1, 1)), lambda x, w: F.conv2d(x, w, stride=2),
           {"strides": [2, 2]}, note="open-1x1s2"),
    Sample("Conv", ((2, 4, 5, 5), (4, 1, 3, 3)), lambda x, w: F.conv2d(x, w, padding=1, groups=4),
           {"pads": [1, 1, 1, 1], "group": 4}, note="open-depthwise"),
    Sample("Conv", ((3, 4, 6, 5), (6, 2, 3, 3)), lambda x, w: F.conv2d(x, w, stride=2, groups=2),
           {"strides": [2, 2], "group": 2}, note="open-grouped", double=False),
    Sample("Conv", ((2, 3, 9), (4, 3, 2)), lambda x, w: F.conv1d(x, w, padding=1),
           {"pads": [1, 1]}, note="open-1d"),
    Sample("ConvTranspose", ((2, 3, 4, 4), KT, (5,)),
           lambda x, b: F.conv_transpose2d(x, T(KT).to(x), b, stride=2), {"strides": [2, 2]}),
    Sample("BatchNormalization", ((2, 3, 4, 4), np.array([1.0, 2.0, 0.5]), (3,),
                                  np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.5, 2.0])),
           lambda x, b: F.batch_norm(x, T([0.1, 0.2, 0.3]).to(x), T([1.0, 0.5, 2.0]).to(x),
                                     T([1.0, 2.0, 0.5]).to(x), b), {"epsilon": 1e-5}),
]

POOLING = [
    Sample("MaxPool", ((2, 3, 6, 6),), lambda x: F.max_pool2d(x, 2, 2),
           {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Sample("MaxPool", ((2, 2, 8, 7),), lambda x: F.max_pool2d(x, 3, 2, 1),
           {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Sample("MaxPool", ((1, 2, 5, 5),), lambda x: F.max_pool2d(x, 3, 1, 1),
           {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}, note="stride1"),
    Sample("MaxPool", ((1, 2, 7, 7),), lambda x: F.max_pool2d(x, 2, 3),
           {"kernel_shape": [2, 2], "strides": [3, 3]}, note="gaps"),
    Sample("MaxPool", ((1, 2, 6, 6),), lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
           {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, note="ceil"),
    Sample("AveragePool", ((2, 3, 6, 6),), lambda x: F.avg_pool2d(x, 2, 2),
           {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Sample("AveragePool", ((2, 3, 7, 6),),
           lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
           {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, note="exclude-pad"),
    Sample("AveragePool", ((2, 3, 7, 6),), lambda x: F.avg_pool2d(x, 3, 2, 1),
           {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1],
            "count_include_pad": 1}, note="include-pad"),
]

SAMPLES = [*LINEAR, *ELEMENTWISE, *ACTIVATION, *NORMALIZATION, *SHAPING, *REDUCTION,
           *CONVOLUTION, *POOLING, *samples_activation.SAMPLES, *samples_arithmetic.SAMPLES,
           *samples_maps.SAMPLES, *samples_moves.SAMPLES]
