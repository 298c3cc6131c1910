"""The derivative g'(x) of an elementwise activation, kept as a code of the pre-activation x.

Encoding does not compute g' (seven passes for GELU): a compander makes codes from x, and each
decodes to a mean of g' over its cell (``codebook``). No scales are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.codecs.codebook import Codebook, design
from s2a_edge.pack.codecs.codec import Array, Shape, count_of
from s2a_edge.pack.codecs.gradient_weights import REFERENCES
from s2a_edge.pack.codecs.words import lookup_words, words_bytes

WIDTHS = (1, 2, 3, 4, 8)


@dataclass(frozen=True)
class DerivativeCodec:
    """g'(x) of ``function`` at ``WIDTHS`` bits.

    Attributes:
        function: a key of ``codebook.REFERENCES``.
        width: bits.
        fitted: a codebook for a model's own pre-activations; None: that of the reference
            distribution.
    """

    function: str
    width: int
    fitted: Codebook | None = None

    @property
    def name(self) -> str:
        """``gelu4``, ``gelu4_fitted``, or ``gelu3_fitted_exact`` where the ends are exact."""
        fitted = "_fitted" if self.fitted else ""
        ends = REFERENCES[self.function].ends
        exact = self.width == 3 and ends is not None and self.codebook.levels[-1] == ends[1]
        return f"{self.function}{self.width}{fitted}{'_exact' if exact else ''}"

    @property
    def bits(self) -> float:
        """The width."""
        return float(self.width)

    @property
    def codebook(self) -> Codebook:
        """Cells and levels."""
        return self.fitted or design(self.function, 1 << self.width)

    @property
    def levels(self) -> Array:
        """float32 [2**width]: what each code decodes to."""
        return np.array(self.codebook.levels, np.float32)

    def encode(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """Packed words."""
        return (self.codebook.compander.emit(g, x, self.width),)

    def decode(self, g: GraphBuilder, stored: tuple[ir.Value, ...], shape: Shape) -> ir.Value:
        """The level of each code."""
        return lookup_words(g, stored[0], self.levels, shape)

    def stored_bytes(self, shape: Shape) -> int:
        """The packed words."""
        return words_bytes(count_of(shape), self.width)

    def reference(self, x: Array) -> Array:
        """The same in numpy."""
        codes = self.codebook.compander.codes(x.astype(np.float64), 1 << self.width)
        return self.levels[codes]


__all__ = ["REFERENCES", "WIDTHS", "DerivativeCodec"]
