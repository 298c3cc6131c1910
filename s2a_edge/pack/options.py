"""What a user may ask of ``pack``, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from s2a_edge.pack.adapt import ADAPTERS, AdapterSizes, Tuning
from s2a_edge.pack.half.formats import PRECISIONS, Precision
from s2a_edge.pack.optimizer import SCALARS
from s2a_edge.pack.precision import BITS, Attention
from s2a_edge.pack.recompute import RECOMPUTES, Recompute
from s2a_edge.pack.search.options import SearchOptions
from s2a_edge.pack.selection import ALL
from s2a_edge.spec.calibration import MAX_SAMPLES
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.frozen_weights import FrozenStorage
from s2a_edge.spec.task_ports import HEAD_LOSSES, Loss

_Check = tuple[str, bool, str, str]
"""A flag, whether it holds, what it should say, what it says."""


@dataclass(frozen=True)
class PackOptions:
    """The recipe of a pack.

    Attributes:
        labels: names of classes, labels or regressed numbers, in the order of the head's outputs;
            none: class folders and columns are taken in their own order.
        classes: how many; None: as many as labels.
        input_shape: shape of one sample, e.g. (3, 224, 224); None: as the source says.
        weights: weights for a source that has none.
        features: name of the internal value to cut at; None: found.
        tokenizer: a ``tokenizer.json`` for texts; None: that of the source, if it has one.
        pool: ``cls``, ``mean`` or ``gap``, for features that are not [N, D].
        effective_batch: samples per optimizer step.
        micro_batches: samples per run of a training graph; one graph each.
        adapters: names out of ``adapt.ADAPTERS``; the head is implied.
        rank: inner width of low-rank prompts, side branches and LoRA.
        reduce: channels that a side branch averages into one.
        alpha: LoRA's update is scaled by alpha / rank.
        blocks: which blocks get adapters: ``all``, ``last:N``, ``first:N``, ``every:N``, or names.
        target_modules: names or patterns of the modules whose biases and weights train, in the
            manner of PEFT; None: all.
        bits: bits per saved value: 2, 3, 4, 8, 16 or 32 (off); ``auto``: chosen for each value by
            the gradient error that it causes.
        frozen: how frozen weights are kept: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        precision: what graphs compute in: ``fp32``, ``fp16`` or ``bf16``; half precision is for the
            CUDA provider, and keeps frozen weights in float16 at least.
        emulate: with half precision, write float32 graphs that round as it does: for a CPU.
        budget_bytes: of the whole process of training, which the bundle must fit with its largest
            micro-batch; ``auto`` uses it up. None: any.
        saved_budget_bytes: with ``auto``, most bytes of saved values per sample. None: what 4 bits
            for all would take, or what the budget leaves.
        loss: ``cross_entropy`` (one class of several), ``bce`` (any number of labels), ``mse`` or
            ``l1`` (numbers), ``output`` (a scalar output of the source itself; no head is added).
        loss_output: with ``output``, the name of that output.
        attention: whether attention probabilities are stored, recomputed, or what is better.
        recompute: what is computed again from other saved values: ``none``, ``cheap`` (element-wise
            operators and views), ``products`` (also one product with a frozen matrix).
        optimizer: ``adamw`` or ``sgd``.
        device: name of the device profile it is meant for.
        seed: of the head's start values and of the rehearsal's inputs.
        preprocessing: fields of the manifest's ``preprocessing`` that differ from what the source
            says; an ONNX file says nothing.
        threads: threads of the rehearsal; None: all usable cores.
        calibration: class folders or an ``.npz``, as training takes them, to measure gradient
            errors on; None: noise with the spectrum of photographs.
        calibration_samples: at most so many of it; ``auto`` measures sensitivities on no more
            either, noise or not.
        front: ``auto``: the wide front of a network runs in parts of the micro-batch where that
            saves memory; ``whole``: never, for comparison.
        order: ``searched`` for a small arena, or ``naive``: as emitted, for comparison.
        places: ``auto``: larger values have planned places in a pool where that saves memory, or
            ``arena``: the runtime places everything. A pool takes a searched order.
        native: also make each training step with kernels in C, where this host can compile them.
        auto: search micro-batch, bits, attention, storage of frozen weights and blocks: the fastest
            step within ``budget_bytes``. None: everything as said.
    """

    labels: tuple[str, ...] = ()
    classes: int | None = None
    input_shape: tuple[int, ...] | None = None
    weights: Path | None = None
    features: str | None = None
    pool: str | None = None
    tokenizer: Path | None = None
    effective_batch: int = 32
    micro_batches: tuple[int, ...] = (8,)
    adapters: tuple[str, ...] = ("bias",)
    rank: int = AdapterSizes.rank
    reduce: int = AdapterSizes.reduce
    alpha: float = AdapterSizes.alpha
    blocks: str = ALL
    target_modules: str | None = None
    bits: int | Literal["auto"] = 4
    frozen: FrozenStorage = "fp32"
    precision: Precision = "fp32"
    emulate: bool = False
    budget_bytes: int | None = None
    saved_budget_bytes: int | None = None
    attention: Attention = "auto"
    recompute: Recompute = "cheap"
    loss: Loss = "cross_entropy"
    loss_output: str | None = None
    optimizer: str = "adamw"
    device: str | None = None
    seed: int = 0
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    calibration: Path | None = None
    calibration_samples: int = 16
    front: Literal["auto", "whole"] = "auto"
    order: Literal["searched", "naive"] = "searched"
    places: Literal["auto", "arena"] = "auto"
    native: bool = True
    auto: SearchOptions | None = None

    @property
    def tuning(self) -> Tuning:
        """What trains."""
        return Tuning(self.adapters, self.blocks, self.target_modules,
                      AdapterSizes(self.rank, self.reduce, self.alpha))

    @property
    def class_count(self) -> int:
        """Number of the head's outputs."""
        return len(self.labels) if self.classes is None else self.classes

    @property
    def _fewest(self) -> int:
        """One class is nothing to learn; one label or one number is."""
        return {"cross_entropy": 2, "output": 0}.get(self.loss, 1)

    @property
    def _searches_micro_batch(self) -> bool:
        """``micro_batches`` is not what will be."""
        return self.auto is not None and "micro_batches" not in self.auto.fixed

    def __post_init__(self) -> None:
        checks = (*self._task_checks(), *self._type_checks(), *self._budget_checks(),
                  *self._adapter_checks(), *self._step_checks())
        for where, holds, expected, got in checks:
            if not holds:
                raise UsageError(where=where, expected=expected, got=got,
                                 todo="correct the flag")

    def _task_checks(self) -> list[_Check]:
        """Loss, classes and labels."""
        return [
            ("--loss", self.loss in (*HEAD_LOSSES, "output")
             and (self.loss_output is not None) == (self.loss == "output"),
             f"{', '.join(HEAD_LOSSES)} or output:NAME", f"{self.loss}:{self.loss_output}"),
            *self._own_loss_checks(),
            ("--labels / --classes", self.class_count >= self._fewest,
             f"at least {self._fewest} for {self.loss}", f"{self.class_count}"),
            ("--classes", not self.labels or self.class_count == len(self.labels),
             f"{len(self.labels)}, as many as there are labels", str(self.classes)),
            ("--labels", len(set(self.labels)) == len(self.labels), "different labels",
             "a label given twice"),
            ("--labels", all(label.strip() for label in self.labels), "a name for every class",
             "an empty label"),
        ]

    def _own_loss_checks(self) -> list[_Check]:
        """A graph that is its own loss has no head, and takes full micro-batches only."""
        if self.loss != "output":
            return []
        ragged = [n for n in self.micro_batches if n > 0 and self.effective_batch % n
                  and not self._searches_micro_batch]
        return [
            ("--labels / --classes", self.class_count == 0, "neither with --loss output:NAME",
             str(self.class_count)),
            ("--features / --pool", self.features is None and self.pool is None,
             "neither with --loss output:NAME", str(self.features or self.pool)),
            ("--micro-batch", not ragged, f"divisors of {self.effective_batch} (--batch): every "
             "micro-batch of a graph's own loss is full", str(ragged)),
        ]

    def _type_checks(self) -> list[_Check]:
        """What values, weights and graphs are kept in and computed in."""
        return [
            ("--bits", self.bits in (*BITS, "auto"), f"auto or one of {BITS}", str(self.bits)),
            ("--frozen", self.frozen in get_args(FrozenStorage),
             " or ".join(get_args(FrozenStorage)), str(self.frozen)),
            ("--precision", self.precision in PRECISIONS, " or ".join(PRECISIONS), self.precision),
            ("--emulate", not self.emulate or self.precision != "fp32", "a --precision of fp16 or "
             "bf16 beside it", self.precision),
            ("--frozen", self.frozen != "int4" or self.precision == "fp32" or self.emulate,
             "fp16 or int8 with half precision: the CUDA provider does not unpack 4 bits",
             self.frozen),
        ]

    def _budget_checks(self) -> list[_Check]:
        """Budgets, and the search that needs one."""
        return [
            ("--budget", self.budget_bytes is None or self.budget_bytes > 0, "more than nothing",
             str(self.budget_bytes)),
            ("--auto", self.auto is None or self.precision == "fp32",
             "float32: half precision cannot be timed on a CPU", self.precision),
            ("--auto", self.auto is None or self.budget_bytes is not None,
             "--budget or --device beside it", "neither"),
            ("--saved-budget", self.saved_budget_bytes is None or self.auto is None,
             "no --auto beside it: it allocates bits itself", str(self.saved_budget_bytes)),
            ("--saved-budget", self.saved_budget_bytes is None or self.saved_budget_bytes > 0,
             "more than nothing", str(self.saved_budget_bytes)),
            ("--saved-budget", self.saved_budget_bytes is None or self.bits == "auto",
             "--bits auto beside it", f"--bits {self.bits}"),
        ]

    def _adapter_checks(self) -> list[_Check]:
        """What trains."""
        return [
            ("--adapters", bool(self.adapters) and set(self.adapters) <= set(ADAPTERS),
             f"names out of {', '.join(ADAPTERS)}", ",".join(self.adapters) or "none"),
            ("--adapters", "full" not in self.adapters or set(self.adapters) <= {"full", "head"},
             "full alone: with it everything trains", ",".join(self.adapters)),
            ("--rank", self.rank >= 1, "a number of at least 1", str(self.rank)),
            ("--reduce", self.reduce >= 1, "a number of at least 1", str(self.reduce)),
            ("--alpha", self.alpha > 0, "a number above 0", str(self.alpha)),
            ("--blocks", bool(self.blocks.strip()), "all, last:N, first:N, every:N or names",
             "nothing"),
            ("--target-modules", self.target_modules is None or bool(self.target_modules.strip()),
             "names of modules", "nothing"),
        ]

    def _step_checks(self) -> list[_Check]:
        """How a step is made and tried."""
        return [
            ("--optimizer", self.optimizer in SCALARS, " or ".join(SCALARS), self.optimizer),
            ("--attention", self.attention in ("auto", "store", "recompute"),
             "auto, store or recompute", str(self.attention)),
            ("--recompute", self.recompute in RECOMPUTES, " or ".join(RECOMPUTES),
             str(self.recompute)),
            ("--recompute", self.recompute != "products" or self.bits != "auto",
             "none or cheap beside --bits auto", self.recompute),
            ("--micro-batch", bool(self.micro_batches) and min(self.micro_batches, default=0) >= 1
             and len(set(self.micro_batches)) == len(self.micro_batches),
             "different numbers of at least 1", str(self.micro_batches)),
            ("--batch", self._searches_micro_batch
             or self.effective_batch >= max(self.micro_batches, default=1),
             "at least the largest micro-batch", str(self.effective_batch)),
            ("--input", self.input_shape is None or min(self.input_shape, default=0) >= 1,
             "sizes of at least 1", str(self.input_shape)),
            ("--seed", self.seed >= 0, "a number of at least 0", str(self.seed)),
            ("--threads", self.threads is None or self.threads >= 1, "a number of at least 1",
             str(self.threads)),
            ("--calibration-samples", 1 <= self.calibration_samples <= MAX_SAMPLES,
             f"a number from 1 to {MAX_SAMPLES}", str(self.calibration_samples)),
        ]
