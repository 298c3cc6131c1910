"""What training a bundle needs in memory, line by line.

A **budget** is what the whole training process may hold in memory at once: Python and the runtime,
the arena, the trainable tensors, the input pipeline, and the frozen weights that are mapped from
``weights.bin``, all of them taken as resident. A **requirement** is the sum of those lines; each
says whether it was *measured* (at pack time, or by the caller on this device) or *planned*.

All sessions of the process share one arena and run one after another, so it must hold the largest
of the train, eval and optimizer plans, not their sum. Everything else is held side by side. The
evaluation graph counts unless the caller says that there is no validation (``Setting``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.manifest import BatchGraph, Manifest, OptimizerGraph
from s2a_edge.spec.manifest_checks import ITEM_BYTES
from s2a_edge.spec.memory_plan import NOT_MEASURED
from s2a_edge.spec.task_ports import loss_inputs, training_outputs
from s2a_edge.spec.units import MIB

How = Literal["measured at pack time", "measured on this device", "planned"]

# What a training process takes beyond a rehearsal that has loaded the same modules: code of
# checkpoints and of the input pipeline as it is first run, fragments of the heap. 0.9 MiB were seen
# on a ViT-tiny with JPEG and PNG files of 1920x1080 at a terminal (onnxruntime 1.32, x86-64). By as
# much more as this a process of that program may differ from the rehearsed one (0.3 MiB seen).
PIPELINE_BYTES = 5 * MIB

STATES_PER_TRAINABLE = {"adamw": 2, "sgd": 1}  # m and v; momentum

# One frame of 1920x1080 at the decoder's four bytes per pixel, with a MiB for its buffers: the
# size of a common camera's pictures. A run that knows its data set passes the data set's own bound.
DECODED_IMAGE_BYTES = 1920 * 1080 * 4 + MIB


class LineKind(str, Enum):
    """What a line of a requirement is for."""

    RUNTIME = "runtime"
    SESSIONS = "sessions"
    WEIGHTS = "weights"
    ARENA = "arena"
    TRAINABLES = "trainables"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    INPUTS = "inputs"
    OTHER = "other"


@dataclass(frozen=True)
class RequirementLine:
    """One part of what training needs: what it is, its bytes, and how they are known."""

    label: str
    size_bytes: int
    how: How
    kind: LineKind


@dataclass(frozen=True)
class Verdict:
    """Whether a requirement fits a budget.

    Attributes:
        fits: it does.
        budget_bytes: the budget.
        headroom_bytes: what is left; 0 if it does not fit.
        missing_bytes: what is missing; 0 if it fits.
    """

    fits: bool
    budget_bytes: int
    headroom_bytes: int
    missing_bytes: int


@dataclass(frozen=True)
class Requirement:
    """What training with one micro-batch needs.

    Attributes:
        micro_batch: rows per step of the train graph.
        arena_bytes: what the runtime's arena and the pool may take together.
        pool_bytes: the part of it that is the pool (:mod:`s2a_edge.spec.pool_ports`).
        lines: the parts, in the order of a table.
        train_graph: file of its training graph.
        arenas: what each graph needs of arena and pool, by file.
    """

    micro_batch: int
    arena_bytes: int
    lines: tuple[RequirementLine, ...]
    train_graph: str = ""
    arenas: Mapping[str, int] = field(default_factory=dict)
    pool_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of the lines."""
        return sum(line.size_bytes for line in self.lines)

    def of_kind(self, *kinds: LineKind) -> int:
        """Bytes of the lines of these kinds."""
        return sum(line.size_bytes for line in self.lines if line.kind in kinds)

    def verdict(self, budget_bytes: int) -> Verdict:
        """Whether all of it fits ``budget_bytes``; a budget of exactly the total fits."""
        left_bytes = budget_bytes - self.total_bytes
        return Verdict(left_bytes >= 0, budget_bytes, max(0, left_bytes), max(0, -left_bytes))

    def as_dict(self) -> dict[str, object]:
        """The requirement as JSON-ready values."""
        lines = [
            {"label": x.label, "bytes": x.size_bytes, "how": x.how, "kind": x.kind.value}
            for x in self.lines
        ]
        return {
            "micro_batch": self.micro_batch,
            "arena_bytes": self.arena_bytes,
            "pool_bytes": self.pool_bytes,
            "total_bytes": self.total_bytes,
            "lines": lines,
        }


@dataclass(frozen=True)
class Setting:
    """What a requirement depends on besides the bundle.

    Attributes:
        provider: ``cuda`` copies the frozen weights into device memory for each session that reads
            them (on a Jetson that is the same DRAM).
        runtime_base_bytes: memory of this process before the first session, measured by the
            caller on this device; None: what was measured at pack time.
        rehearsed_as: machine and version of onnxruntime here, as evidence names them. Evidence of
            the same was measured here too, and counts unless this process holds more; it has seen
            all of the runtime's code run.
        decoded_image_bytes: most bytes that decoding one image takes.
        prefetch: a second batch is read while the first is computed.
        threads: threads of one operator; None: as many as the plan is for.
        onnxruntime: major and minor number of the version; None: a recent one. On the CPU some
            versions need a larger arena.
        evaluation: the evaluation graph is loaded too; training without validation data is not.
        cuda_context_bytes: what CUDA's context and libraries took when they started here; 0: not
            measured, and left out of the budget instead (a device profile's overhead).
    """

    provider: Literal["cpu", "cuda"] = "cpu"
    runtime_base_bytes: int | None = None
    rehearsed_as: tuple[str, str] | None = None
    decoded_image_bytes: int = DECODED_IMAGE_BYTES
    prefetch: bool = True
    threads: int | None = None
    onnxruntime: tuple[int, int] | None = None
    evaluation: bool = True
    cuda_context_bytes: int = 0


DEFAULT_SETTING = Setting()


def requirement(
    manifest: Manifest, *, micro_batch: int | None = None, setting: Setting = DEFAULT_SETTING
) -> Requirement:
    """What training ``manifest``'s bundle needs.

    Args:
        manifest: of the bundle.
        micro_batch: which train graph; None: the largest.
        setting: what else it depends on.

    Raises:
        UsageError: the bundle has no train graph of that micro-batch.
    """
    train = _train_graph(manifest, micro_batch)
    plans = {graph.file: graph.plan for graph in _loaded(manifest, train, setting)}
    version = setting.onnxruntime if setting.provider == "cpu" else None
    limits = {file: x.arena_limit_bytes(setting.threads, version) for file, x in plans.items()}
    largest = max(limits, key=lambda file: limits[file])
    # Graphs share one arena and one pool, each as large as the one that needs most of it. On CUDA
    # the arena stays as large as without a pool: workspaces of cuDNN, in no plan, lie there.
    own_arenas = [limit - plans[file].pool_bytes * (setting.provider == "cpu")
                  for file, limit in limits.items()]
    pool_bytes = max(plan.pool_bytes for plan in plans.values())
    arena_bytes = max(own_arenas) + pool_bytes
    param_bytes = manifest.state_layout.size_bytes
    states = STATES_PER_TRAINABLE[manifest.recipe.optimizer]
    lines = [
        *_runtime_lines(manifest, train, setting),
        *_weight_lines(manifest, setting),
        RequirementLine(f"arena ({largest} needs most)", arena_bytes, "planned", LineKind.ARENA),
        *_cuda_lines(sum(own_arenas) - max(own_arenas), setting),
        RequirementLine("trainable tensors", param_bytes, "planned", LineKind.TRAINABLES),
        RequirementLine("their gradients", param_bytes, "planned", LineKind.GRADIENTS),
        RequirementLine(
            f"state of {manifest.recipe.optimizer}",
            states * param_bytes,
            "planned",
            LineKind.OPTIMIZER,
        ),
        *_input_lines(manifest, train, setting),
    ]
    shown = tuple(line for line in lines if line.size_bytes)
    return Requirement(train.batch, arena_bytes, shown, train.file, limits, pool_bytes)


def micro_batches(manifest: Manifest) -> tuple[int, ...]:
    """The packed micro-batches, largest first."""
    return tuple(sorted((graph.batch for graph in manifest.graphs.train), reverse=True))


def _train_graph(manifest: Manifest, micro_batch: int | None) -> BatchGraph:
    wanted = micro_batches(manifest)[0] if micro_batch is None else micro_batch
    for graph in manifest.graphs.train:
        if graph.batch == wanted:
            return graph
    packed = ", ".join(map(str, micro_batches(manifest)))
    raise UsageError(
        where="--micro-batch",
        expected=f"one of the packed micro-batches, {packed}",
        got=str(micro_batch),
        todo="choose one of them, or pack again with this one",
    )


def _loaded(
    manifest: Manifest, train: BatchGraph, setting: Setting
) -> tuple[BatchGraph | OptimizerGraph, ...]:
    """The graphs that a training process makes sessions of."""
    graphs = manifest.graphs
    return (train, *([graphs.eval] if setting.evaluation else []), graphs.optimizer)


def _runtime_lines(
    manifest: Manifest, train: BatchGraph, setting: Setting
) -> tuple[RequirementLine, ...]:
    """Python and onnxruntime, the sessions, and what a rehearsal found on top."""
    evidence = [graph.evidence for graph in _loaded(manifest, train, setting)]
    named = "train, eval, optimizer" if setting.evaluation else "train, optimizer"
    base_bytes = max(one.runtime_base_bytes for one in evidence)
    how: How = "measured at pack time"
    growth_bytes = PIPELINE_BYTES
    here_bytes = setting.runtime_base_bytes
    rehearsed = all((one.machine, one.onnxruntime) == setting.rehearsed_as for one in evidence)
    if here_bytes is not None and not (rehearsed and here_bytes <= base_bytes + growth_bytes):
        base_bytes, how = here_bytes, "measured on this device"
        growth_bytes = 0  # whoever measures counts it
    sessions_bytes = sum(one.session_bytes for one in evidence)
    return (
        RequirementLine("Python and onnxruntime", base_bytes, how, LineKind.RUNTIME),
        RequirementLine(
            f"sessions ({named})",
            sessions_bytes,
            "measured at pack time",
            LineKind.SESSIONS,
        ),
        RequirementLine(
            "image and checkpoint code, heap", growth_bytes, "planned", LineKind.OTHER
        ),
        RequirementLine(
            "beyond the plan",
            _beyond_plan(manifest, train, setting),
            "measured at pack time",
            LineKind.OTHER,
        ),
    )


def _beyond_plan(manifest: Manifest, train: BatchGraph, setting: Setting) -> int:
    """The most by which a rehearsal's process exceeded the parts that are known of it.

    Evidence counts resident memory without the mapped weights; so do the parts here.
    """
    graphs = manifest.graphs
    param_bytes = sum(trainable.size_bytes for trainable in manifest.trainables)
    loaded = _loaded(manifest, train, setting)
    states = STATES_PER_TRAINABLE[manifest.recipe.optimizer]
    row_bytes = _row_bytes(manifest)
    train_bytes = 2 * param_bytes + train.batch * row_bytes
    eval_bytes = param_bytes + graphs.eval.batch * row_bytes
    optimizer_bytes = (2 + states) * 4 * manifest.state_layout.chunk_elements
    bound = {train.file: train_bytes, graphs.eval.file: eval_bytes,
             graphs.optimizer.file: optimizer_bytes}
    beyond = (
        graph.evidence.process_peak_bytes
        - (graph.evidence.runtime_base_bytes + graph.evidence.session_bytes
           + graph.plan.arena_bytes + bound[graph.file])
        for graph in loaded
        if graph.evidence.arena_measured_bytes != NOT_MEASURED  # of a twin, which needs more
    )
    return max((0, *beyond))


def weights_bytes(manifest: Manifest) -> int:
    """Bytes of ``weights.bin`` that tensors take, padding included."""
    return max((x.offset + x.size_bytes for x in manifest.weights), default=0)


def _weight_lines(manifest: Manifest, setting: Setting) -> tuple[RequirementLine, ...]:
    """On the CPU the mapped file; on CUDA copies, one for each session that reads weights.

    There the runtime maps one tensor at a time, copies it and lets go of the mapping, so that where
    CPU and GPU share their memory a weight is never counted as mapped and as copied.
    """
    file_bytes, storage = weights_bytes(manifest), manifest.frozen.storage
    if setting.provider == "cpu":
        label = f"frozen weights ({storage}), mapped"
        return (RequirementLine(label, file_bytes, "planned", LineKind.WEIGHTS),)
    largest_bytes = max((x.size_bytes for x in manifest.weights), default=0)
    copies = 2 if setting.evaluation else 1  # the optimizer reads no weights
    return (
        RequirementLine(
            f"frozen weights ({storage}), a copy for each of {copies} sessions on the GPU",
            copies * file_bytes, "planned", LineKind.WEIGHTS),
        RequirementLine(
            "the largest of them, mapped while it is copied",
            largest_bytes, "planned", LineKind.WEIGHTS),
    )


def _cuda_lines(other_arenas_bytes: int, setting: Setting) -> tuple[RequirementLine, ...]:
    """What CUDA takes besides: sessions have arenas of their own there, and keep them."""
    if setting.provider == "cpu":
        return ()
    return (
        RequirementLine("arenas of the other sessions", other_arenas_bytes, "planned",
                        LineKind.ARENA),
        RequirementLine("CUDA context and libraries", setting.cuda_context_bytes,
                        "measured on this device", LineKind.RUNTIME),
    )


def _row_bytes(manifest: Manifest) -> int:
    """Bytes of one sample's inputs, of what it gives the loss, and of its logits."""
    task = manifest.task
    data_bytes = sum(math.prod(x.shape) * ITEM_BYTES[x.dtype] for x in manifest.inputs)
    ports = (loss_inputs(task.loss, 1, task.classes), training_outputs(task, 1))
    floats = sum(math.prod(shape) for named in ports for shape in named.values())
    return data_bytes + floats * ITEM_BYTES["float32"]


def _input_lines(
    manifest: Manifest, train: BatchGraph, setting: Setting
) -> tuple[RequirementLine, ...]:
    evaluated = manifest.graphs.eval.batch if setting.evaluation else 0
    rows = max(train.batch, evaluated) * (2 if setting.prefetch else 1)
    has_images = manifest.preprocessing is not None and manifest.preprocessing.kind == "image"
    image_bytes = setting.decoded_image_bytes if has_images else 0
    return (
        RequirementLine(
            "batches of inputs" + (", one ahead" if setting.prefetch else ""),
            rows * _row_bytes(manifest),
            "planned",
            LineKind.INPUTS,
        ),
        RequirementLine("one image being decoded", image_bytes, "planned", LineKind.INPUTS),
    )
