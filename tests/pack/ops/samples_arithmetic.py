"""More samples of arithmetic and reductions: size-1 axes, broadcasting, ties, negative axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.pack.ops.sample import Sample, frozen, ints

T = torch.tensor
V4 = frozen(4)
CHOICE = np.array([[True, False, True, False]])


def _broadcasting(op: str, fn: Any, positive: bool = False) -> list[Sample]:
    """Leading axes missing, size-1 axes on both sides, a scalar, equal shapes of one."""
    shapes: list[Any] = [((2, 1, 4), (3, 1)), ((4,), (1, 3, 4)), ((2, 1, 4), (2, 3, 1)),
                         ((), (2, 3)), ((1, 1), (1, 1))]
    return [Sample(op, pair, fn, positive=positive, note="broadcast") for pair in shapes]


def _reduction(op: str, fn: Any, **more: Any) -> list[Sample]:
    """An axis from the end, several of them kept or not, one of size 1, all of them, none."""
    return [
        Sample(op, ((2, 3, 4), ints(-1)), lambda x: fn(x, (-1,), True), {"keepdims": 1}, **more),
        Sample(op, ((2, 3, 4), ints(0, -2)), lambda x: fn(x, (0, 1), False), {"keepdims": 0},
               **more),
        Sample(op, ((2, 1, 4), ints(1)), lambda x: fn(x, (1,), False), {"keepdims": 0}, **more),
        Sample(op, ((3, 4),), lambda x: fn(x, (0, 1), True), note="all", **more),
        Sample(op, ((3, 4),), lambda x: fn(x, (0, 1), False), {"keepdims": 0}, note="scalar",
               **more),
    ]


def _norm(order: float) -> Any:
    return lambda x, dim, keep: torch.linalg.vector_norm(x, order, dim, keep)


ELEMENTWISE = [
    *_broadcasting("Add", torch.add), *_broadcasting("Sub", torch.sub),
    *_broadcasting("Mul", torch.mul), *_broadcasting("Div", torch.div, positive=True),
    *_broadcasting("Max", torch.maximum), *_broadcasting("Min", torch.minimum),
    Sample("Max", ((2, 3), (3,), (2, 1)), lambda a, b, c: torch.maximum(torch.maximum(a, b), c),
           note="three"),
    Sample("Min", ((2, 4), V4), lambda x: torch.minimum(x, T(V4).to(x)), note="frozen"),
    Sample("Max", ((2, 3),), lambda x: x * 1.0, note="one"),
    Sample("Sum", ((2, 3), (3,), (2, 1)), lambda a, b, c: a + b + c),
    Sample("Sum", ((1, 3),), lambda x: x * 1.0, note="one"),
    Sample("Mean", ((2, 3), (3,), (2, 1)), lambda a, b, c: (a + b + c) / 3),
    Sample("Mean", ((1, 3), frozen(3)), lambda x: (x + T(frozen(3)).to(x)) / 2, note="frozen"),
    Sample("Log", ((2, 1, 3),), torch.log, positive=True),
    Sample("Sin", ((2, 1, 3),), torch.sin),
    Sample("Cos", ((2, 1, 3),), torch.cos),
    Sample("Abs", ((3, 1, 4),), torch.abs),
    *(Sample(op, ((2, 1, 3),), fn, spread=2.0) for op, fn in (
        ("Sign", torch.sign), ("Floor", torch.floor), ("Ceil", torch.ceil),
        ("Round", torch.round))),
    Sample("Where", (CHOICE, (3, 4), (1, 4)), lambda a, b: torch.where(T(CHOICE), a, b)),
    Sample("Where", (CHOICE, (2, 3, 1), frozen(4)), lambda a: torch.where(
        T(CHOICE), a, T(frozen(4)).to(a)), note="frozen"),
    *(Sample(op, ((2, 1, 3),), fn, positive=True, note="ones") for op, fn in (
        ("Sqrt", torch.sqrt), ("Exp", torch.exp), ("Reciprocal", torch.reciprocal),
        ("Neg", torch.neg), ("Identity", lambda x: x * 1.0))),
    Sample("Pow", ((2, 1, 3), np.asarray([[-1.5]])), lambda x: x**-1.5, positive=True),
    Sample("Pow", ((1, 3), np.asarray(1.0)), lambda x: x**1.0),
    *_broadcasting("Pow", torch.pow, positive=True),
    Sample("Pow", ((2, 3), V4[:3]), lambda x: x ** T(V4[:3]).to(x), positive=True, note="frozen"),
    Sample("Pow", (np.abs(V4), (2, 4)), lambda p: T(np.abs(V4)).to(p) ** p, note="base"),
]

REDUCTIONS = [
    *_reduction("ReduceSum", torch.sum), *_reduction("ReduceMean", torch.mean),
    *_reduction("ReduceMax", torch.amax), *_reduction("ReduceMin", torch.amin),
    *_reduction("ReduceL1", _norm(1)), *_reduction("ReduceL2", _norm(2)),
    *_reduction("ReduceSumSquare", lambda x, dim, keep: (x * x).sum(dim, keep)),
    *_reduction("ReduceLogSumExp", torch.logsumexp),
    *(Sample(op, ((2, 1, 3),), fn, {"noop_with_empty_axes": 1}, note="noop") for op, fn in (
        ("ReduceSum", lambda x: x * 1.0), ("ReduceMean", lambda x: x * 1.0))),
]

SAMPLES = [*ELEMENTWISE, *REDUCTIONS]
