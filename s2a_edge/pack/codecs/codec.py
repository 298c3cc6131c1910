"""What a codec is: a way to keep a forward value in few bits until the backward reads it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from s2a_edge.pack.builder import GraphBuilder

Array = NDArray[np.float32]
Shape = tuple[int, ...]


class Codec(Protocol):
    """Emits the nodes that store a value in few bits and the nodes that give it back.

    ``decode(encode(x))`` has the shape of ``x`` and is float32. For |x| up to 1e38 every stored and
    decoded number is finite.
    """

    @property
    def name(self) -> str:
        """Short and unique, for manifests and tables: ``symmetric4``."""
        ...

    @property
    def bits(self) -> float:
        """Nominal bits per element, without scales and padding."""
        ...

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """Appends the encoder to ``g``; returns the tensors to be kept alive."""
        ...

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """Appends the decoder to ``g``; returns float32 of ``shape``."""
        ...

    def stored_bytes(self, shape: Shape) -> int:
        """Bytes of all stored tensors for a value of ``shape``."""
        ...

    def reference(self, x: Array) -> Array:
        """The same in numpy: equals the ONNX result up to rounding at code boundaries."""
        ...


def count_of(shape: Shape) -> int:
    """Elements of ``shape``; 1 for a scalar."""
    return int(np.prod(shape, dtype=np.int64))


__all__ = ["Array", "Codec", "Shape", "count_of"]
