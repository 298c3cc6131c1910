"""The part of the manifest that says how it was packed: what trains, what is kept and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from s2a_edge.spec.manifest_search import SearchRecord
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

Share = Annotated[float, Span(0, 1e30)]


@dataclass(frozen=True)
class Recipe:
    """How it was packed; ``effective_batch`` is the sum of its micro-batches.

    ``recompute`` says what may be computed again instead of kept; ``saved`` names each such value.
    ``precision`` is what the training and evaluation graphs compute in; ``emulated``: they are
    float32 graphs that round as it does, for a CPU.
    ``search`` says how the configuration was chosen, where ``--auto`` did.
    """

    adapters: Annotated[tuple[Name, ...], Length(0, 64)]
    bits: Annotated[int, Span(1, 32)] | Literal["auto"]
    attention: Literal["store", "recompute"]
    optimizer: Literal["adamw", "sgd"]
    effective_batch: Batch
    micro_batches: Annotated[tuple[Batch, ...], Length(1, MAX_GRAPHS)]
    device: Text | None
    seed: Annotated[int, Span(0, 2**63 - 1)]
    recompute: Literal["none", "cheap", "products"] = "none"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    emulated: bool = False
    search: SearchRecord | None = None


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
    """A value that the forward keeps for the backward, in the largest micro-batch graph.

    Attributes:
        value: its name in the graph.
        module: where it arises.
        kind: what it is to the backward.
        codec: how it is kept, or ``recompute``.
        bits: per element, 0 where it is computed again.
        stored_bytes: of the stored tensors.
        sensitivity: with ``--bits auto``, the relative error of all gradients together that this
            value alone causes, by bits.
        reason: why it got its bits; empty where there was nothing to choose.
    """

    value: Name
    module: Text
    kind: Name
    codec: Name
    bits: Annotated[float, Span(0, 64)]
    shape: Shape
    stored_bytes: ByteCount
    sensitivity: dict[Name, Share] = field(default_factory=dict)
    reason: Text = ""


@dataclass(frozen=True)
class AllocationRecord:
    """How ``--bits auto`` came to its bits.

    Attributes:
        seed: of the samples and of noise.
        samples: that sensitivities were measured on.
        capacity_bytes: what the saved values of the largest micro-batch might take.
        stored_bytes: what they take.
        predicted_error: of all gradients together, relative: root of the sum of the squared errors
            that the values cause one by one. Measured: ``evidence.gradient_error`` of the graph.
        least_error: no other choice within the capacity is predicted to have less.
        seconds: what measuring took.
    """

    seed: Annotated[int, Span(0, 2**63 - 1)]
    samples: Annotated[int, Span(1, MAX_ENTRIES)]
    capacity_bytes: ByteCount
    stored_bytes: ByteCount
    predicted_error: Share
    least_error: Share
    seconds: Share


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
        policy: ``fixed``: one number of bits for all; ``auto``: chosen for each value.
        calibration: what gradient errors were measured on; None in bundles of older releases.
        allocated: with ``auto``, how.
    """

    policy: Literal["fixed", "auto"] = "fixed"
    calibration: Calibration | None = None
    allocated: AllocationRecord | None = None
