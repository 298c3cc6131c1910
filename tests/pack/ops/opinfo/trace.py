"""A call of PyTorch as ONNX nodes: what the mappings of this package are written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import shape_of

Mapped = ir.Value | Sequence[ir.Value]
Mapping = Callable[..., Mapped]


class UnmappedError(Exception):
    """This call has no counterpart; the text is the category it is counted in."""


class Trace:
    """The graph of one call, under construction.

    Attributes:
        g: where nodes are added.
        opened: the graph input of each tensor that is differentiated for, by its id.
    """

    def __init__(self) -> None:
        self.g = GraphBuilder()
        self.opened: dict[int, ir.Value] = {}

    def value(self, given: Any, *, frozen: bool = False) -> ir.Value:
        """A tensor that requires a gradient is an input (unless ``frozen``), others constants."""
        if isinstance(given, ir.Value):
            return given
        if not isinstance(given, torch.Tensor):
            return self.g.constant(np.asarray(given, np.float32))
        if not given.requires_grad or frozen:
            array = given.detach().numpy()
            return self.g.constant(array.astype(np.float32) if array.dtype.kind == "f" else array)
        if id(given) not in self.opened:
            name = f"x{len(self.opened)}"
            self.opened[id(given)] = self.g.input(name, ir.DataType.FLOAT, tuple(given.shape))
        return self.opened[id(given)]

    def op(self, op_type: str, *operands: Any, **attributes: Any) -> ir.Value:
        """Appends an operator; operands are values, tensors, numbers, or None."""
        inputs = [None if v is None else self.value(v) for v in operands]
        return self.g.op(op_type, *inputs, **attributes)

    def ints(self, numbers: int | Sequence[int]) -> ir.Value:
        """An int64 constant, of rank 0 for a single number."""
        return self.g.constant(np.asarray(numbers, np.int64))

    def reshape(self, given: Any, dims: Sequence[int]) -> ir.Value:
        """``given`` in another shape."""
        return self.op("Reshape", given, self.ints(list(dims)))

    def shape(self, given: Any) -> tuple[int, ...]:
        """Of a value, tensor or number."""
        return shape_of(given) if isinstance(given, ir.Value) else tuple(np.shape(given))


def listed(given: int | Sequence[int], count: int) -> list[int]:
    """A number for each of ``count`` axes: one that is given once holds for all."""
    if isinstance(given, int):
        return [given] * count
    found = list(given)
    return found * count if len(found) == 1 else found


def need(holds: bool, category: str) -> None:
    """UnmappedError unless ``holds``."""
    if not holds:
        raise UnmappedError(category)
