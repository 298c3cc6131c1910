"""``manifest.json``: what a bundle is, as frozen dataclasses.

The classes are the schema (:mod:`s2a_edge.spec.strict_json`); what no single field can say is
checked in :mod:`s2a_edge.spec.manifest_checks`. A manifest that cannot be read is never written:
:meth:`Manifest.to_json` applies the reader's own checks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from s2a_edge.spec import strict_json
from s2a_edge.spec.manifest_checks import WEIGHTS_ALIGNMENT_BYTES, check_consistency
from s2a_edge.spec.memory_plan import MAX_BYTES, ByteCount, Evidence, MemoryPlan, Name
from s2a_edge.spec.strict_json import Length, Matches, Span, refuse
from s2a_edge.spec.task_ports import Loss

MANIFEST_NAME = "manifest.json"
FORMAT: Final = "s2a-bundle"
FORMAT_VERSION: Final = 1

MAX_MANIFEST_BYTES = 16 * 2**20
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


@dataclass(frozen=True)
class Source:
    """Where the backbone came from."""

    kind: Literal["onnx", "timm", "hf", "factory"]
    name: Text
    weights: Text | None
    features: Text | None
    pool: Text | None
    opset: Annotated[int, Span(1, 1000)]


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


@dataclass(frozen=True)
class WeightEntry:
    """A frozen tensor in ``weights.bin``, little-endian, row-major, at a page boundary.

    ``part_of``: it is a run of rows of that other tensor, whose bytes it shares.
    """

    name: Name
    dtype: WeightDType
    shape: Annotated[tuple[Annotated[int, Span(0, MAX_DIM)], ...], Length(0, MAX_RANK)]
    offset: ByteCount
    size_bytes: ByteCount
    part_of: Name | None = None


@dataclass(frozen=True)
class BatchGraph:
    """A training or evaluation graph for one static batch."""

    file: FileName
    batch: Batch
    plan: MemoryPlan
    evidence: Evidence


@dataclass(frozen=True)
class OutputSpec:
    """An output of an exported model; ``shape`` is that of one sample, with its batch of 1."""

    name: Name
    dtype: WeightDType
    shape: Shape


@dataclass(frozen=True)
class InferGraph:
    """The inference skeleton.

    Attributes:
        weights: names of the frozen tensors that export appends.
        inputs: names of the data inputs that it takes; None: all of them.
        outputs: what it gives; None: ``logits`` alone.
    """

    file: FileName
    weights: Annotated[tuple[Name, ...], Length(0, MAX_ENTRIES)]
    inputs: Annotated[tuple[Name, ...], Length(1, 64)] | None = None
    outputs: Annotated[tuple[OutputSpec, ...], Length(1, 64)] | None = None


@dataclass(frozen=True)
class OptimizerGraph:
    """The update of all trainables."""

    file: FileName
    plan: MemoryPlan
    evidence: Evidence


@dataclass(frozen=True)
class Graphs:
    """All graphs of a bundle."""

    train: Annotated[tuple[BatchGraph, ...], Length(1, MAX_GRAPHS)]
    eval: BatchGraph
    infer: InferGraph
    optimizer: OptimizerGraph


@dataclass(frozen=True)
class Compat:
    """What can run the bundle."""

    onnxruntime_min: Annotated[str, Matches(r"\d+(\.\d+){1,3}", "a version like 1.19")]
    providers: Annotated[tuple[Literal["cpu", "cuda"], ...], Length(1, 2)]


@dataclass(frozen=True)
class Manifest:
    """All of ``manifest.json``; the fields are explained where their classes are."""

    format: Literal["s2a-bundle"]
    format_version: Literal[1]
    created: Annotated[
        str,
        Matches(
            r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?)?", "an ISO 8601 date"
        ),
    ]
    tool_version: Name
    versions: Annotated[dict[Name, Name], Length(0, 64)]
    source: Source
    inputs: Annotated[tuple[InputSpec, ...], Length(1, 64)]
    preprocessing: Preprocessing | TextPreprocessing | None
    task: Task
    recipe: Recipe
    trainables: Annotated[tuple[Trainable, ...], Length(1, MAX_ENTRIES)]
    saved: Annotated[tuple[SavedValue, ...], Length(0, MAX_ENTRIES)]
    weights: Annotated[tuple[WeightEntry, ...], Length(0, MAX_ENTRIES)]
    graphs: Graphs
    compat: Compat
    precision: Precision = Precision()
    tuning: Tuning = Tuning()

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and check a manifest.

        Raises:
            BundleError: anything is unknown, missing, of a wrong type, out of range or
                contradictory; names the place in the file.
        """
        if len(text) > MAX_MANIFEST_BYTES:
            refuse(MANIFEST_NAME, f"at most {MAX_MANIFEST_BYTES} bytes", f"{len(text)} characters")
        value = strict_json.parse(text, where=MANIFEST_NAME)
        _check_version(value)
        manifest = strict_json.read(cls, value, file=MANIFEST_NAME)
        check_consistency(manifest)
        return manifest

    def to_json(self) -> str:
        """The text of ``manifest.json``; the same manifest always gives the same text.

        Raises:
            BundleError: the manifest breaks a rule that :meth:`from_json` would refuse.
        """
        value = strict_json.plain(self)
        check_consistency(strict_json.read(Manifest, value, file=MANIFEST_NAME))
        text = json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
        if len(text) > MAX_MANIFEST_BYTES:
            refuse(MANIFEST_NAME, f"at most {MAX_MANIFEST_BYTES} bytes", str(len(text)))
        return text

    def files(self) -> tuple[str, ...]:
        """Names of all files the bundle holds besides the manifest and ``SHA256SUMS``."""
        graphs = self.graphs
        named = [*(g.file for g in graphs.train), graphs.eval.file, graphs.infer.file]
        if isinstance(self.preprocessing, TextPreprocessing):
            named.append(self.preprocessing.tokenizer)
        return (*named, graphs.optimizer.file, "adapters.safetensors", "weights.bin")


def _check_version(value: object) -> None:
    """Say "newer format" before complaining about keys that only the newer format has."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        refuse(f"{MANIFEST_NAME}: format", FORMAT, "something else", "give an s2a-edge bundle")
    version = value.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        got = str(version)[:40] if type(version) is int else "no version number"
        todo = "use the s2a-edge version that wrote the bundle, or pack it again with this one"
        refuse(f"{MANIFEST_NAME}: format_version", str(FORMAT_VERSION), got, todo)


__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "MAX_BYTES",
    "MAX_MANIFEST_BYTES",
    "WEIGHTS_ALIGNMENT_BYTES",
    "AnyPreprocessing",
    "BatchGraph",
    "Calibration",
    "Compat",
    "Graphs",
    "InferGraph",
    "InputSpec",
    "Manifest",
    "OptimizerGraph",
    "OutputSpec",
    "Precision",
    "Preprocessing",
    "Recipe",
    "SavedValue",
    "Source",
    "Task",
    "TextPreprocessing",
    "Trainable",
    "TunedBlock",
    "Tuning",
    "WeightEntry",
]
