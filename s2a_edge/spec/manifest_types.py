"""Types of the manifest's fields, with the bounds that its reader holds them to."""

from __future__ import annotations

from typing import Annotated, Literal

from s2a_edge.spec.strict_json import Length, Matches, Span

MAX_ENTRIES = 65_536  # trainables, saved values, weights, labels: each
MAX_GRAPHS = 64
MAX_RANK = 8
MAX_DIM = 2**31 - 1
MAX_BATCH = 65_536
MAX_TEXT_CHARS = 4096

Text = Annotated[str, Length(0, MAX_TEXT_CHARS)]
Dim = Annotated[int, Span(1, MAX_DIM)]
Shape = Annotated[tuple[Dim, ...], Length(0, MAX_RANK)]
Batch = Annotated[int, Span(1, MAX_BATCH)]
FileName = Annotated[
    str, Matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", "a plain file name, no folder")
]
Real = Annotated[float, Span(-1e30, 1e30)]
Positive = Annotated[float, Span(1e-30, 1e30)]
WeightDType = Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]
InputDType = Literal["float32", "int64", "int32"]
TrainableKind = Literal[
    "bias", "norm_bias", "head_weight", "head_bias", "lrp_a", "lrp_b", "lsb_down", "lsb_bias",
    "lsb_up", "lora_a", "lora_b", "weight", "norm_weight",
]  # fmt: skip
