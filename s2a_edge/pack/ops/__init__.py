"""All differentiation rules, by operator. Adding one = one rule and one row of samples."""

from __future__ import annotations

from s2a_edge.pack.ops import (
    activation,
    channel_norm,
    convolution,
    elementwise,
    linear,
    normalization,
    padding,
    pooling,
    reduction,
    resize,
    row_norm,
    shaping,
)
from s2a_edge.pack.rule import Rule

RULES: dict[tuple[str, str], Rule] = {
    **linear.RULES,
    **elementwise.RULES,
    **activation.RULES,
    **normalization.RULES,
    **row_norm.RULES,
    **channel_norm.RULES,
    **shaping.RULES,
    **padding.RULES,
    **resize.RULES,
    **reduction.RULES,
    **convolution.RULES,
    **pooling.RULES,
}
