"""The part of the manifest that says how it was packed: what trains, what is kept and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from s2a_edge.spec.manifest_types import (
    MAX_DIM,
    MAX_ENTRIES,
    MAX_GRAPHS,
    Batch,
    Positive,
    Shape,
    Text,
    TrainableKind,
)
from s2a_edge.spec.memory_plan import ByteCount, Name
from s2a_edge.spec.strict_json import Length, Span


@dataclass(frozen=True)
class Recipe:
    """How it was packed; ``effective_batch`` is the sum of its micro-batches."""

    adapters: Annotated[tuple[Name, ...], Length(0, 64)]
    bits: Annotated[int, Span(1, 32)]
    attention: Literal["store", "recompute"]
    optimizer: Literal["adamw", "sgd"]
    effective_batch: Batch
    micro_batches: Annotated[tuple[Batch, ...], Length(1, MAX_GRAPHS)]
    device: Text | None
    seed: Annotated[int, Span(0, 2**63 - 1)]


@dataclass(frozen=True)
class Trainable:
    """A tensor that training changes; always float32."""

    name: Name
    shape: Shape
    kind: TrainableKind
    module: Text
    decay: bool
    size_bytes: ByteCount


@dataclass(frozen=True)
class TunedBlock:
    """One block of the backbone; ``shape`` is of its output without the batch.

    Attributes:
        residual: whether it adds its input, or a short-cut of it, to its output.
        adapters: those that it has; none where it is frozen.
    """

    name: Name
    shape: Shape
    residual: bool
    adapters: Annotated[tuple[Name, ...], Length(0, 64)]


@dataclass(frozen=True)
class Tuning:
    """What of the backbone trains.

    Attributes:
        rank: inner width of low-rank prompts, side branches and LoRA.
        reduce: channels that a side branch averages into one.
        alpha: LoRA's update is scaled by alpha / rank.
        blocks: which blocks were asked for.
        target_modules: which modules were asked for; None: all.
        frozen_parameters: of the backbone.
        found: all blocks, from the input to the features.
    """

    rank: Annotated[int, Span(1, MAX_DIM)] | None = None
    reduce: Annotated[int, Span(1, MAX_DIM)] | None = None
    alpha: Positive | None = None
    blocks: Text = "all"
    target_modules: Text | None = None
    frozen_parameters: ByteCount | None = None
    found: Annotated[tuple[TunedBlock, ...], Length(0, MAX_ENTRIES)] = ()


@dataclass(frozen=True)
class SavedValue:
    """A value that the forward keeps for the backward, in the largest micro-batch graph."""

    value: Name
    module: Text
    kind: Name
    codec: Name
    bits: Annotated[float, Span(0, 64)]
    shape: Shape
    stored_bytes: ByteCount


@dataclass(frozen=True)
class Calibration:
    """What gradient errors were measured on.

    Attributes:
        source: name of the data, or ``smooth noise``.
        samples: how many different ones.
    """

    source: Text
    samples: Annotated[int, Span(0, MAX_ENTRIES)]


@dataclass(frozen=True)
class Precision:
    """How the bits of the saved values were chosen.

    Attributes:
        policy: ``fixed``: one number of bits for all.
        calibration: what gradient errors were measured on; None in bundles of older releases.
    """

    policy: Literal["fixed", "auto"] = "fixed"
    calibration: Calibration | None = None
