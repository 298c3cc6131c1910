"""Masks of attention: finite, so that a sample without a single token gives no NaN.

Exporters mask with -inf and guard against rows in which every key is masked, or do not. Padding
samples of a ragged batch are such rows: their weight in the loss is 0, but 0 times NaN is NaN.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.normalize.rewrite import add_constant, array_of

_LOWEST = np.finfo(np.float32).min
_MASKING = ("Where", "Add")


def make_masks_finite(graph: ir.Graph) -> None:
    """-inf in constants that Where chooses or Add adds -> the lowest float32.

    Softmax gives the same, but for a row of nothing else: there it is uniform.
    """
    for node in graph:
        if node.op_type not in _MASKING:
            continue
        for index, value in enumerate(node.inputs):
            array = array_of(value)
            if value is None or array is None or array.dtype != np.float32:
                continue
            if array.ndim == 1 and array.size > 1:  # a bias: large, and never a mask
                continue
            if np.isneginf(array).any():
                finite = np.where(np.isneginf(array), _LOWEST, array)
                node.replace_input_with(index, add_constant(graph, f"{value.name}_finite", finite))
