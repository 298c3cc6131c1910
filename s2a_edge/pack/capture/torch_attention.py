"""Attention that torch's exporter refuses, spelled out while a module is exported.

The exporter translates ``scaled_dot_product_attention`` for [N, H, T, D] only (torch 2.13); Hiera,
for one, calls it with windows as one axis more.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

_EXPORTED_RANK = 4


@contextlib.contextmanager
def attention_of_any_rank() -> Iterator[None]:
    """While open, attention of another rank than 4 is two products and a softmax."""
    import torch.nn.functional as functional

    fused = functional.scaled_dot_product_attention

    def spelled(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
                is_causal: bool = False, scale: float | None = None, **more: Any) -> Any:
        if query.ndim == _EXPORTED_RANK or is_causal or dropout_p or more.get("enable_gqa"):
            return fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = (query * factor) @ key.transpose(-2, -1)
        if attn_mask is not None and attn_mask.dtype.is_floating_point:
            scores = scores + attn_mask
        elif attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        return scores.softmax(-1) @ value

    functional.scaled_dot_product_attention = spelled  # type: ignore[assignment]  # for the export only
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused
