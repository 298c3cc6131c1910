"""Calls of PyTorch that move values, as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.pack.ops.opinfo.trace import Mapped, Mapping, Trace, listed, need


def _axis(t: Trace, x: Any, dim: int) -> int:
    rank = len(t.shape(x))
    need(rank > 0, "an axis of a scalar")
    return dim % rank


def _cat(t: Trace, tensors: Sequence[Any], dim: int = 0) -> ir.Value:
    return t.op("Concat", *tensors, axis=dim)


def _stack(t: Trace, tensors: Sequence[Any], dim: int = 0) -> ir.Value:
    lifted = [t.op("Unsqueeze", v, t.ints([dim])) for v in tensors]
    return t.op("Concat", *lifted, axis=dim)


def _pieces(t: Trace, x: Any, sizes: Sequence[int], dim: int) -> Mapped:
    need(0 not in sizes, "a tensor without elements")
    return t.g.multi("Split", [t.value(x), t.ints(list(sizes))], len(sizes), axis=dim)


def _split(t: Trace, x: Any, split: int | Sequence[int], dim: int = 0) -> Mapped:
    length = t.shape(x)[dim]
    sizes = [min(split, length - i) for i in range(0, length, split)] \
        if isinstance(split, int) else split
    return _pieces(t, x, sizes, dim)


def _chunk(t: Trace, x: Any, chunks: int, dim: int = 0) -> Mapped:
    return _split(t, x, -(-t.shape(x)[dim] // chunks), dim)


def _unbind(t: Trace, x: Any, dim: int = 0) -> Mapped:
    parts = _pieces(t, x, [1] * t.shape(x)[_axis(t, x, dim)], dim)
    return [t.op("Squeeze", part, t.ints([dim])) for part in parts]  # type: ignore[union-attr]  # a tuple


def _permute(t: Trace, x: Any, dims: Sequence[int]) -> ir.Value:
    return t.op("Transpose", x, perm=[d % len(dims) for d in dims])


def _transpose(t: Trace, x: Any, a: int, b: int) -> ir.Value:
    rank = len(t.shape(x))
    need(rank > 0, "an axis of a scalar")
    perm = list(range(rank))
    perm[a], perm[b] = perm[b], perm[a]
    return t.op("Transpose", x, perm=perm)


def _movedim(t: Trace, x: Any, source: Any, destination: Any) -> ir.Value:
    rank = len(t.shape(x))
    sources, targets = ([d % rank for d in listed(v, 1)] for v in (source, destination))
    perm = [a for a in range(rank) if a not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        perm.insert(target, origin)
    return t.op("Transpose", x, perm=perm)


def _reshape(t: Trace, x: Any, shape: Sequence[int]) -> ir.Value:
    return t.reshape(x, shape)


def _flatten(t: Trace, x: Any, start_dim: int = 0, end_dim: int = -1) -> ir.Value:
    dims = t.shape(x) or (1,)
    first, last = start_dim % len(dims), end_dim % len(dims)
    return t.reshape(x, [*dims[:first], math.prod(dims[first: last + 1]), *dims[last + 1:]])


def _unflatten(t: Trace, x: Any, dim: int, sizes: Sequence[int]) -> ir.Value:
    dims, axis = t.shape(x), _axis(t, x, dim)
    return t.reshape(x, [*dims[:axis], *sizes, *dims[axis + 1:]])


def _squeeze(t: Trace, x: Any, dim: Any = None) -> ir.Value:
    dims = t.shape(x)
    wanted = range(len(dims)) if dim is None else [d % max(len(dims), 1) for d in listed(dim, 1)]
    axes = [a for a in wanted if dims and dims[a] == 1]
    return t.op("Squeeze", x, t.ints(axes)) if axes else t.op("Identity", x)


def _unsqueeze(t: Trace, x: Any, dim: int) -> ir.Value:
    return t.op("Unsqueeze", x, t.ints([dim]))


def _expand(t: Trace, x: Any, shape: Sequence[int]) -> ir.Value:
    dims = t.shape(x)
    lead = len(shape) - len(dims)
    full = [dims[i - lead] if s == -1 else s for i, s in enumerate(shape)]
    need(0 not in full, "a tensor without elements")
    return t.op("Expand", x, t.ints(full))


def _repeat(t: Trace, x: Any, repeats: Sequence[int]) -> ir.Value:
    need(0 not in repeats, "a tensor without elements")
    dims = t.shape(x)
    lifted = t.reshape(x, [*[1] * (len(repeats) - len(dims)), *dims])
    return t.op("Tile", lifted, t.ints(list(repeats)))


def _tile(t: Trace, x: Any, dims: Sequence[int]) -> ir.Value:
    return _repeat(t, x, [*[1] * (len(t.shape(x)) - len(dims)), *dims])


def _roll(t: Trace, x: Any, shifts: Any, dims: Any = None) -> ir.Value:
    shape, y = t.shape(x), t.value(x)
    if dims is None or dims == ():
        y, dims = t.reshape(x, [-1]), 0
    for shift, dim in zip(listed(shifts, 1), listed(dims, 1), strict=True):
        length = t.shape(y)[dim]
        cut = -shift % length
        if cut:
            ends = [t.op("Slice", y, t.ints([a]), t.ints([b]), t.ints([dim]))
                    for a, b in ((cut, length), (0, cut))]
            y = t.op("Concat", *ends, axis=dim)
    return t.reshape(y, shape)


def _flip(t: Trace, x: Any, dims: Sequence[int]) -> ir.Value:
    count = len(dims)
    if not count:
        return t.op("Identity", x)
    return t.op("Slice", x, t.ints([-1] * count), t.ints([-(2**62)] * count),
                t.ints(list(dims)), t.ints([-1] * count))


def _narrow(t: Trace, x: Any, dim: int, start: Any, length: int) -> ir.Value:
    need(length > 0, "a tensor without elements")
    first = int(start) % t.shape(x)[dim]
    return t.op("Slice", x, t.ints([first]), t.ints([first + length]), t.ints([dim]))


def _select(t: Trace, x: Any, dim: int, index: int) -> ir.Value:
    return t.op("Gather", x, t.ints(index), axis=dim)


def _index_select(t: Trace, x: Any, dim: int, index: Any) -> ir.Value:
    need(len(t.shape(x)) > 0, "an axis of a scalar")
    picked = t.value(index)
    rows = picked if t.shape(picked) else t.reshape(picked, [1])
    return t.op("Gather", x, rows, axis=dim)


def _gather(t: Trace, x: Any, dim: int, index: Any) -> ir.Value:
    need(len(t.shape(x)) > 0, "an axis of a scalar")
    return t.op("GatherElements", x, index, axis=dim)


def _triangle(t: Trace, x: Any, diagonal: int, *, upper: bool) -> ir.Value:
    rows, columns = t.shape(x)[-2:]
    keep = (np.triu if upper else np.tril)(np.ones((rows, columns)), diagonal).astype(bool)
    return t.op("Where", t.g.constant(keep), x, 0.0)


def _tril(t: Trace, x: Any, diagonal: int = 0) -> ir.Value:
    return _triangle(t, x, diagonal, upper=False)


def _triu(t: Trace, x: Any, diagonal: int = 0) -> ir.Value:
    return _triangle(t, x, diagonal, upper=True)


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(t: Trace, x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None,
         ) -> ir.Value:
    need(mode == "constant" or min(pad) >= 0, "negative pads in another mode than constant")
    rank, count = len(t.shape(x)), len(pad) // 2
    before, after = [0] * rank, [0] * rank
    for i in range(count):
        before[rank - 1 - i], after[rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    filling = float(value or 0.0) if mode == "constant" else None
    return t.op("Pad", x, t.ints([*before, *after]), filling, mode=_MODES[mode])


def _shuffle(t: Trace, x: Any, upscale_factor: int) -> ir.Value:
    *lead, c, h, w = t.shape(x)
    flat = t.reshape(x, [math.prod(lead), c, h, w])
    y = t.op("DepthToSpace", flat, blocksize=upscale_factor, mode="CRD")
    return t.reshape(y, [*lead, *t.shape(y)[1:]])


def _unshuffle(t: Trace, x: Any, downscale_factor: int) -> ir.Value:
    # SpaceToDepth's channels are blocks first, PyTorch's channels first.
    r = downscale_factor
    *lead, c, h, w = t.shape(x)
    y = t.op("SpaceToDepth", t.reshape(x, [math.prod(lead), c, h, w]), blocksize=r)
    blocks = t.reshape(y, [math.prod(lead), r * r, c, h // r, w // r])
    turned = t.op("Transpose", blocks, perm=[0, 2, 1, 3, 4])
    return t.reshape(turned, [*lead, c * r * r, h // r, w // r])


MAPPED: dict[str, Mapping] = {
    "cat": _cat, "stack": _stack, "split": _split, "split.list_args": _split,
    "split_with_sizes": _split, "chunk": _chunk, "unbind": _unbind, "permute": _permute,
    "transpose": _transpose, "movedim": _movedim, "reshape": _reshape, "view": _reshape,
    "flatten": _flatten, "unflatten": _unflatten, "squeeze": _squeeze,
    "squeeze.multiple": _squeeze, "unsqueeze": _unsqueeze, "expand": _expand, "repeat": _repeat,
    "tile": _tile, "roll": _roll, "flip": _flip, "narrow": _narrow, "select": _select,
    "index_select": _index_select, "gather": _gather, "tril": _tril, "triu": _triu,
    **{f"nn.functional.pad.{mode}": _pad for mode in _MODES},
    "nn.functional.pixel_shuffle": _shuffle, "nn.functional.pixel_unshuffle": _unshuffle,
}
