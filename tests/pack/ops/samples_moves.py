"""More samples of operators that move values: borders, blocks, copies, running sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows

from tests.pack.ops.sample import Sample, ints

T = torch.tensor


def _padded(mode: str) -> Any:
    return lambda x: F.pad(x, (1, 2, 2, 0), mode=mode)


def _blocks_first(x: Any) -> Any:
    """SpaceToDepth in ONNX's order: [N, b, b, C, H, W]."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(
        n, 4 * c, h // 2, w // 2)


def _blocks_last(x: Any) -> Any:
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(
        n, c // 4, 2 * h, 2 * w)


def _running(x: Any, dim: int, *, exclusive: bool = False, reverse: bool = False) -> Any:
    x = x.flip(dim) if reverse else x
    y = x.cumsum(dim) - (x if exclusive else 0)
    return y.flip(dim) if reverse else y


BORDERS = [
    Sample("Pad", ((2, 3, 4, 5), ints(0, 0, 2, 1, 0, 0, 0, 2)), _padded("reflect"),
           {"mode": "reflect"}, note="reflect"),
    Sample("Pad", ((2, 3, 4, 5), ints(0, 0, 2, 1, 0, 0, 0, 2)), _padded("replicate"),
           {"mode": "edge"}, note="edge"),
    Sample("Pad", ((1, 1, 1, 3), ints(2, 1, 0, 2), None, ints(-2, 3)),
           lambda x: F.pad(x, (1, 2, 2, 0), mode="replicate"), {"mode": "edge"}, note="edge-one"),
    Sample("Pad", ((2, 3, 4, 5), ints(0, 0, 2, 1, 0, 0, 0, 2)), _padded("circular"),
           {"mode": "wrap"}, note="wrap"),
    Sample("Pad", ((2, 5), ints(0, -1, 1, -2)), lambda x: F.pad(x, (-1, -2, 0, 1)), note="cropped",
           double=False),
    Sample("Pad", ((1, 3), ints(1, 1, 0, 0), np.asarray(2.0)), lambda x: F.pad(
        x, (1, 0, 1, 0), value=2.0), note="valued"),
]

BLOCKS = [
    Sample("DepthToSpace", ((1, 8, 2, 3),), _blocks_last, {"blocksize": 2, "mode": "DCR"}),
    Sample("DepthToSpace", ((2, 8, 1, 3),), lambda x: F.pixel_shuffle(x, 2),
           {"blocksize": 2, "mode": "CRD"}, note="crd"),
    Sample("SpaceToDepth", ((1, 3, 4, 2),), _blocks_first, {"blocksize": 2}),
]

COPIES = [
    Sample("Tile", ((2, 1, 3), ints(1, 4, 2)), lambda x: x.repeat(1, 4, 2)),
    Sample("Tile", ((2, 3), ints(1, 1)), lambda x: x.repeat(1, 1), note="once"),
    Sample("Expand", ((2, 1), ints(1, 4)), lambda x: x.expand(2, 4), note="both-ways"),
    Sample("Expand", ((), ints(2, 3)), lambda x: x.expand(2, 3), note="scalar"),
    Sample("CumSum", ((2, 1, 4), np.asarray(-1)), lambda x: _running(x, -1)),
    Sample("CumSum", ((2, 3), np.asarray(0)), lambda x: _running(x, 0, exclusive=True),
           {"exclusive": 1}, note="exclusive"),
    Sample("CumSum", ((2, 3), np.asarray(1)), lambda x: _running(x, 1, reverse=True),
           {"reverse": 1}, note="reverse"),
]

VIEWS = [
    Sample("Reshape", ((1, 3, 1), ints(3)), lambda x: x.reshape(3)),
    Sample("Flatten", ((2, 1, 3, 4),), lambda x: x.reshape(2, 12), {"axis": -3}, note="negative"),
    Sample("Flatten", ((2, 3),), lambda x: x.reshape(1, 6), {"axis": 0}, note="all"),
    Sample("Squeeze", ((1, 3, 1),), lambda x: x.squeeze(), note="all"),
    Sample("Unsqueeze", ((3,), ints(-1, 0)), lambda x: x[None, :, None], note="two"),
    Sample("Unsqueeze", ((1, 3), ints(1)), lambda x: x[:, None]),
    Sample("Transpose", ((1, 3),), lambda x: x.T, {"perm": [1, 0]}),
    Sample("Concat", ((2, 3), (2, 1), (2, 2)), lambda a, b, c: torch.cat([a, b, c], 1),
           {"axis": -1}, note="three"),
    Sample("Concat", ((1, 3),), lambda x: x * 1.0, {"axis": 0}, note="one"),
    Sample("Split", ((5, 1),), lambda x: x.split([3, 2], 0), {"axis": 0, "num_outputs": 2},
           outputs=2, note="uneven"),
    Sample("Slice", ((1, 4), ints(0), ints(2)), lambda x: x[:1], note="no-axes"),
    Sample("Slice", ((1, 7), ints(-6), ints(-1), ints(-1), ints(3)), lambda x: x[:, 1:6:3],
           note="negative-strided"),
    Sample("Gather", ((1, 4, 2), np.array([[1], [-1]])), lambda x: x[:, [[1], [3]]],
           {"axis": -2}, note="negative"),
    Sample("Gather", ((3, 1), ints(2)), lambda x: x[[2]], note="one"),
    Sample("GatherElements", ((2, 3), np.array([[2, 2, 0], [1, 1, 0]])),
           lambda x: x.gather(1, torch.tensor([[2, 2, 0], [1, 1, 0]])), {"axis": -1},
           note="repeated"),
    Sample("GatherElements", ((3, 1), np.array([[2], [0]])),
           lambda x: x.gather(0, torch.tensor([[2], [0]]))),
    Sample("GatherElements", ((2, 2, 1), np.array([[[1]], [[0]]])),
           lambda x: x.gather(1, torch.tensor([[[1]], [[0]]])), {"axis": 1}, note="middle"),
]

SAMPLES = [*BORDERS, *BLOCKS, *COPIES, *VIEWS]
