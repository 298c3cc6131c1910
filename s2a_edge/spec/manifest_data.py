"""The part of the manifest that says what goes in and what is learned of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from s2a_edge.spec.manifest_types import (
    MAX_DIM,
    MAX_ENTRIES,
    MAX_TEXT_CHARS,
    Dim,
    FileName,
    InputDType,
    Positive,
    Real,
    Shape,
    Text,
)
from s2a_edge.spec.memory_plan import Name
from s2a_edge.spec.strict_json import Length, Span
from s2a_edge.spec.task_ports import Loss


@dataclass(frozen=True)
class InputSpec:
    """One data input of the graphs; ``shape`` is without the batch."""

    name: Name
    dtype: InputDType
    shape: Shape
    kind: Literal["image", "tensor"]


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes an input: resize, crop, ``(pixel * scale - mean) / std``.

    Attributes:
        size: height and width of the input, in pixels.
        scale: factor on 0..255 pixels before ``mean`` and ``std``.
        mean: per channel, in the order of ``channels``.
        std: per channel, in the order of ``channels``.
        crop_pct: side of the centre crop as a share of the resized image, 0..1.
    """

    kind: Literal["image"]
    size: tuple[Annotated[int, Span(1, 65_536)], Annotated[int, Span(1, 65_536)]]
    layout: Literal["NCHW", "NHWC"]
    channels: Literal["RGB", "BGR"]
    scale: Positive
    mean: tuple[Real, Real, Real]
    std: tuple[Positive, Positive, Positive]
    interpolation: Literal["bilinear", "bicubic"]
    crop_pct: Annotated[float, Span(0.01, 1)]


@dataclass(frozen=True)
class TextPreprocessing:
    """How a text becomes the inputs named in :mod:`s2a_edge.spec.text_inputs`.

    Attributes:
        tokenizer: file of the bundle, in the format of the tokenizers library.
        max_length: tokens of the inputs; longer texts are cut off, shorter ones padded behind.
        pad_id: token id of the padding.
    """

    kind: Literal["text"]
    tokenizer: FileName
    max_length: Dim
    pad_id: Annotated[int, Span(0, MAX_DIM)]


AnyPreprocessing = Preprocessing | TextPreprocessing


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        loss: ``cross_entropy`` (one class of several), ``bce`` (any number of labels at once),
            ``mse`` or ``l1`` (numbers), ``output`` (a scalar output of the graph itself).
        classes: entries of a row of logits: classes, labels or regressed numbers; 0 for
            ``output``, which has no logits.
        labels: their names; empty where none were given.
        output: for ``output``, the value in the source that is the loss; else None.
    """

    loss: Loss
    classes: Annotated[int, Span(0, MAX_ENTRIES)]
    labels: Annotated[tuple[Annotated[str, Length(1, MAX_TEXT_CHARS)], ...], Length(0, MAX_ENTRIES)]
    output: Text | None = None
