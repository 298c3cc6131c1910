"""``manifest.json``: what a bundle is, as frozen dataclasses.

The classes are the schema (:mod:`s2a_edge.spec.strict_json`); what no single field can say is
checked in :mod:`s2a_edge.spec.manifest_checks`. A manifest that cannot be read is never written:
:meth:`Manifest.to_json` applies the reader's own checks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from s2a_edge.spec import strict_json
from s2a_edge.spec.frozen_weights import FrozenWeights
from s2a_edge.spec.manifest_checks import WEIGHTS_ALIGNMENT_BYTES, check_consistency
from s2a_edge.spec.manifest_data import (
    AnyPreprocessing,
    InputSpec,
    Preprocessing,
    Task,
    TextPreprocessing,
)
from s2a_edge.spec.manifest_recipe import (
    AllocationRecord,
    Calibration,
    Precision,
    Recipe,
    SavedValue,
    Trainable,
    TunedBlock,
    Tuning,
)
from s2a_edge.spec.manifest_types import (
    MAX_DIM,
    MAX_ENTRIES,
    MAX_GRAPHS,
    MAX_RANK,
    Batch,
    FileName,
    Shape,
    Text,
    TrainableKind,
    WeightDType,
)
from s2a_edge.spec.memory_plan import MAX_BYTES, ByteCount, Evidence, MemoryPlan, Name
from s2a_edge.spec.state_layout import StateLayout, state_layout
from s2a_edge.spec.strict_json import Length, Matches, Span, refuse

MANIFEST_NAME = "manifest.json"
FORMAT: Final = "s2a-bundle"
FORMAT_VERSION: Final = 2  # 1 had an optimizer graph of one node set for each trainable

MAX_MANIFEST_BYTES = 16 * 2**20

# What holds of bundles that were packed before these could be chosen.
_FIRST_PRECISION, _FIRST_TUNING, _FIRST_FROZEN = Precision(), Tuning(), FrozenWeights()


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
class NativeGraph:
    """A training step of nodes that need kernels compiled for the board (``s2a_edge/native``)."""

    file: FileName
    plan: MemoryPlan
    evidence: Evidence


@dataclass(frozen=True)
class BatchGraph:
    """A training or evaluation graph for one static batch.

    ``native``: the same training step in its faster form, if the bundle has it; ``timeline``: file
    of its planned buffers, of training steps.
    """

    file: FileName
    batch: Batch
    plan: MemoryPlan
    evidence: Evidence
    native: NativeGraph | None = None
    timeline: FileName | None = None


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
    """The update of one chunk of all trainables (:mod:`s2a_edge.spec.state_layout`)."""

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
    """What can run the bundle; ``lacking``: why CUDA cannot, a node that it has no kernel for."""

    onnxruntime_min: Annotated[str, Matches(r"\d+(\.\d+){1,3}", "a version like 1.19")]
    providers: Annotated[tuple[Literal["cpu", "cuda"], ...], Length(1, 2)]
    lacking: str = ""


@dataclass(frozen=True)
class Manifest:
    """All of ``manifest.json``; the fields are explained where their classes are."""

    format: Literal["s2a-bundle"]
    format_version: Literal[2]
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
    precision: Precision = _FIRST_PRECISION
    tuning: Tuning = _FIRST_TUNING
    frozen: FrozenWeights = _FIRST_FROZEN

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

    @property
    def state_layout(self) -> StateLayout:
        """Where trainables stand in training's flat buffers."""
        return state_layout((t.name, math.prod(t.shape), t.decay) for t in self.trainables)

    def files(self) -> tuple[str, ...]:
        """Names of all files the bundle holds besides the manifest and ``SHA256SUMS``."""
        graphs = self.graphs
        named = [*(g.file for g in graphs.train), graphs.eval.file, graphs.infer.file]
        named += [g.native.file for g in graphs.train if g.native is not None]
        named += [g.timeline for g in graphs.train if g.timeline is not None]
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
    "MAX_ENTRIES",
    "MAX_MANIFEST_BYTES",
    "WEIGHTS_ALIGNMENT_BYTES",
    "AllocationRecord",
    "AnyPreprocessing",
    "BatchGraph",
    "Calibration",
    "Compat",
    "Graphs",
    "InferGraph",
    "InputSpec",
    "Manifest",
    "NativeGraph",
    "OptimizerGraph",
    "OutputSpec",
    "Precision",
    "Preprocessing",
    "Recipe",
    "SavedValue",
    "Source",
    "Task",
    "Text",
    "TextPreprocessing",
    "Trainable",
    "TrainableKind",
    "TunedBlock",
    "Tuning",
    "WeightDType",
    "WeightEntry",
]
