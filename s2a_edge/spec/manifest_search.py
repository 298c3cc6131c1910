"""What ``pack --auto`` weighed and why it chose what it did; part of the manifest's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from s2a_edge.spec.frozen_weights import FrozenStorage
from s2a_edge.spec.manifest_types import MAX_ENTRIES, Batch, Text
from s2a_edge.spec.memory_plan import ByteCount, Name
from s2a_edge.spec.strict_json import Length, Span

Milliseconds = Annotated[float, Span(0, 1e12)]
Share = Annotated[float, Span(0, 1e30)]


@dataclass(frozen=True)
class FrontierRow:
    """One configuration that no other beats in memory, time and error at once.

    Attributes:
        micro_batch: samples of a run of the training graph.
        saves: how saved values are kept, in words.
        frozen: storage of frozen weights.
        blocks: what trains.
        flags: of ``pack``, to ask for it; bits of an allocation are chosen within a share of what
            4 bits take, which is in ``saves``.
        total_bytes: what the whole process of training is predicted to need.
        step_ms: predicted time of one update: all micro-batches and the optimizer.
        gradient_error: that codes of saved values were measured to cause, relative.
        left_out: share of the squared norm of all gradients that does not train with ``blocks``.
        drafted: it was compiled and planned; else estimated from configurations that were.
    """

    micro_batch: Batch
    saves: Text
    frozen: FrozenStorage
    blocks: Text
    flags: Text
    total_bytes: ByteCount
    step_ms: Milliseconds
    gradient_error: Share
    left_out: Annotated[float, Span(0, 1)]
    drafted: bool


@dataclass(frozen=True)
class TimedStep:
    """One step that was run to calibrate the time model, and what the model says of it."""

    flags: Text
    predicted_ms: Milliseconds
    measured_ms: Milliseconds


@dataclass(frozen=True)
class SearchRecord:
    """How a configuration was searched.

    Attributes:
        budget_bytes: of the whole process of training.
        max_gradient_error: the most that was tolerated.
        fixed: what the user had fixed.
        times_from: timed runs on the packing host, or peak rates of the device's profile.
        calibrated: the timed runs; none with times of the device.
        weighed: how many configurations.
        drafted: how many of them were compiled and planned.
        seconds: that the search took, calibration included.
        rows: the frontier, the smallest first; a choice of rows where it is long.
        chosen: index of the row that was taken.
        reasons: why, in sentences.
    """

    budget_bytes: ByteCount
    max_gradient_error: Share
    fixed: Annotated[tuple[Name, ...], Length(0, 16)]
    times_from: Literal["host", "device"]
    calibrated: Annotated[tuple[TimedStep, ...], Length(0, MAX_ENTRIES)]
    weighed: Annotated[int, Span(1, 10**9)]
    drafted: Annotated[int, Span(1, 10**9)]
    seconds: Share
    rows: Annotated[tuple[FrontierRow, ...], Length(1, 256)]
    chosen: Annotated[int, Span(0, 255)]
    reasons: Annotated[tuple[Text, ...], Length(0, 64)]


__all__ = ["FrontierRow", "SearchRecord", "TimedStep"]
