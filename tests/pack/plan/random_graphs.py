"""Random graphs of all operators that the plan models."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import MICROSOFT, shape_of

FLOAT = ir.DataType.FLOAT
Draw = Callable[["Grower"], Sequence[ir.Value]]


class Grower:
    """Grows a random graph: every operation reads values that exist and adds its results."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.b = GraphBuilder()
        self.inputs: list[ir.Value] = []
        self.pool: list[ir.Value] = []
        for _ in range(2):
            self.add_input([self.rng.choice([2, 4]), 8 * self.rng.randint(1, 3),
                            self.rng.randint(4, 20), self.rng.randint(4, 20)])

    def add_input(self, shape: Sequence[int]) -> ir.Value:
        value = self.b.input(f"x{len(self.inputs)}", FLOAT, shape)
        self.inputs.append(value)
        self.pool.append(value)
        return value

    def pick(self, *, image: bool = False) -> ir.Value:
        """A value, rather a young one; ``image``: of four axes that are no larger than needed."""
        found = [v for v in self.pool[-12:] if not image or len(shape_of(v)) == 4]
        found = found or [v for v in self.pool if len(shape_of(v)) == 4]
        return self.rng.choice(found)

    def like(self, value: ir.Value) -> ir.Value:
        """Another value of the same shape, or the same one."""
        return self.rng.choice([v for v in self.pool if shape_of(v) == shape_of(value)])

    def weight(self, *shape: int) -> ir.Value:
        array = np.random.default_rng(self.rng.randrange(2**32)).standard_normal(shape) * 0.1
        return self.b.initializer(self.b.unique("w") + "_init", array.astype(np.float32))

    def model(self) -> ir.Model:
        outputs = [v for v in self.rng.sample(self.pool[2:], k=min(3, len(self.pool) - 2))]
        outputs = list(dict.fromkeys([*outputs, self.pool[-1]]))
        return model_of(self.inputs, outputs, self.b, "random")


def _unary(g: Grower) -> Sequence[ir.Value]:
    name = g.rng.choice(["Relu", "Sigmoid", "Tanh", "Neg", "Erf", "Abs", "Floor", "Round",
                         "Identity", "HardSigmoid", "Gelu", "Sqrt", "Exp"])
    return [g.b.op(name, g.pick())]


def _binary(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    name = g.rng.choice(["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"])
    other = g.rng.choice([g.like(x), g.b.constant(2.0), g.weight(shape_of(x)[-1])])
    return [g.b.op(name, x, other)]


def _variadic(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    return [g.b.op(g.rng.choice(["Sum", "Max", "Min", "Mean"]), x, g.like(x), g.like(x))]


def _view(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    shape = list(shape_of(x))
    if g.rng.random() < 0.3:
        wide = g.b.op("Unsqueeze", x, g.b.constant([1]))
        return [g.b.op("Squeeze", wide, g.b.constant([1]))]
    flat = g.b.op("Reshape", x, g.b.constant([shape[0], -1]))
    return [g.b.op("Reshape", flat, g.b.constant([shape[0], 1, *shape[1:]]))
            ] if len(shape) == 3 else [flat, g.b.op("Reshape", flat, g.b.constant(shape))]


def _transpose(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    perm = list(range(len(shape_of(x))))
    g.rng.shuffle(perm)
    return [g.b.op("Transpose", x, perm=perm)]


def _reduce(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    rank = len(shape_of(x))
    axes = sorted(g.rng.sample(range(rank), k=g.rng.randint(1, rank - 1)))
    name = g.rng.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare"])
    small = g.b.op(name, x, g.b.constant(axes), keepdims=1)
    return [g.b.op("Expand", small, g.b.constant(list(shape_of(x))))]


def _softmax(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    axis = g.rng.randrange(len(shape_of(x)))
    return [g.b.op(g.rng.choice(["Softmax", "LogSoftmax"]), x, axis=axis)]


def _layer_norm(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    width = shape_of(x)[-1]
    outputs = g.b.multi("LayerNormalization", [x, g.weight(width), g.weight(width)],
                        g.rng.choice([1, 3]), axis=-1)
    return outputs[:1]


def _slices(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    axis = g.rng.randrange(len(shape_of(x)))
    length = shape_of(x)[axis]
    cut = g.rng.randint(1, length - 1) if length > 1 else 0
    if not cut:
        return [g.b.op("Concat", x, x, axis=axis)]
    parts = g.b.multi("Split", [x, g.b.constant([cut, length - cut])], 2, axis=axis)
    if g.rng.random() < 0.5:
        return parts
    return [g.b.op("Concat", parts[1], parts[0], axis=axis),
            g.b.op("Slice", x, g.b.constant([0]), g.b.constant([cut]), g.b.constant([axis]))]


def _pad_gather(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    rank = len(shape_of(x))
    padded = g.b.op("Pad", x, g.b.constant([0] * rank + [0] * (rank - 1) + [1]))
    return [padded, g.b.op("Gather", x, g.b.constant([0]), axis=rank - 1)]


def _where(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    mask = g.b.op(g.rng.choice(["Greater", "Less", "Equal"]), x,
                  g.rng.choice([g.b.constant(0.0), g.like(x)]))
    return [g.b.op("Where", mask, g.like(x), g.rng.choice([g.b.constant(0.0), x]))]


def _codes(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    dtype = g.rng.choice([ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.INT8,
                          ir.DataType.INT4])
    scale = g.b.constant(0.1)
    codes = g.b.op("QuantizeLinear", x, scale, output_dtype=int(dtype))
    if g.rng.random() < 0.5:
        g.pool.append(g.b.op("Relu", g.like(x)))
    return [g.b.op("DequantizeLinear", codes, scale)]


def _cast(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    dtype = g.rng.choice([ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.BOOL])
    back = g.b.op("Cast", g.b.op("Cast", x, to=int(dtype)), to=int(FLOAT))
    # Never a Cast of a Cast that loses nothing: the runtime removes the first one.
    return [g.b.op("Neg", back)]


def _clip(g: Grower) -> Sequence[ir.Value]:
    return [g.b.op("Clip", g.pick(), g.b.constant(-1.0), g.b.constant(1.0))]


def _matmul(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    k, n = shape_of(x)[-1], 4 * g.rng.randint(1, 10)
    if g.rng.random() < 0.5:
        return [g.b.op("MatMul", x, g.weight(k, n))]
    return [g.b.op("FusedMatMul", x, g.weight(n, k), domain=MICROSOFT, transB=1)]


def _gemm(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    rows = shape_of(x)[0]
    flat = g.b.op("Flatten", x, axis=1)
    wide = g.b.op("Gemm", flat, g.weight(16, shape_of(flat)[1]), g.weight(16), transB=1)
    return [wide, g.b.op("Reshape", wide, g.b.constant([rows, 1, 4, 4]))]


def _conv(g: Grower) -> Sequence[ir.Value]:
    x = g.pick(image=True)
    channels, k = shape_of(x)[1], g.rng.choice([1, 3])
    group = g.rng.choice([1, 1, channels])
    out = channels if group > 1 else g.rng.choice([4, 8, 48])
    return [g.b.op("Conv", x, g.weight(out, channels // group, k, k), kernel_shape=[k, k],
                   pads=[k // 2] * 4, group=group)]


def _conv_transpose(g: Grower) -> Sequence[ir.Value]:
    x = g.pick(image=True)
    channels, k = shape_of(x)[1], g.rng.choice([1, 3])
    group = g.rng.choice([1, channels])
    out = channels if group > 1 else 8
    return [g.b.op("ConvTranspose", x, g.weight(channels, out // group, k, k),
                   kernel_shape=[k, k], pads=[k // 2] * 4, group=group)]


def _pool(g: Grower) -> Sequence[ir.Value]:
    x = g.pick(image=True)
    kind = g.rng.choice(["MaxPool", "MaxPool2", "AveragePool"])
    outputs = g.b.multi(kind.rstrip("2"), [x], 2 if kind == "MaxPool2" else 1,
                        kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return outputs[:1]


def _batch_norm(g: Grower) -> Sequence[ir.Value]:
    x = g.pick(image=True)
    c = shape_of(x)[1]
    positive = g.b.initializer(g.b.unique("var") + "_init", np.ones(c, np.float32))
    return [g.b.op("BatchNormalization", x, g.weight(c), g.weight(c), g.weight(c), positive)]


def _indices(g: Grower) -> Sequence[ir.Value]:
    x = g.pick()
    best = g.b.op("ArgMax", x, axis=-1, keepdims=1)
    return [g.b.op("GatherElements", x, best, axis=-1)]


OPERATIONS: tuple[Draw, ...] = (
    _unary, _unary, _unary, _binary, _binary, _variadic, _view, _transpose, _reduce, _softmax,
    _layer_norm, _slices, _pad_gather, _where, _codes, _cast, _clip, _matmul, _gemm, _conv,
    _conv_transpose, _pool, _batch_norm, _indices,
)  # fmt: skip
_LARGEST_ELEMENTS = 60_000


def random_graph(seed: int, operations: int) -> ir.Model:
    """A graph of about ``operations`` random operations; some of its values are never read."""
    g = Grower(seed)
    while operations > 0:
        operations -= 1
        made = g.rng.choice(OPERATIONS)(g)
        g.pool.extend(v for v in made if np.prod(shape_of(v)) < _LARGEST_ELEMENTS)
    return g.model()
