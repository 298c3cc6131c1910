"""From a captured backbone to the graphs of a bundle: the pure stages in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted, Trainable
from s2a_edge.pack.allocation.allocate import Allocation, Allocator
from s2a_edge.pack.allocation.measured import PROBE_BATCH, Measured, measured_allocator
from s2a_edge.pack.calibration import Samples
from s2a_edge.pack.calibration_data import calibration_samples
from s2a_edge.pack.capture import Backbone, Captured
from s2a_edge.pack.choose_front import in_parts
from s2a_edge.pack.coverage import require_gradients, require_rules
from s2a_edge.pack.differentiate import StepGraph, differentiate
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.forward_graphs import forward_model, loss_model, predictions_model
from s2a_edge.pack.frozen.decode_nodes import FrozenCoder
from s2a_edge.pack.frozen.second_moments import second_moments
from s2a_edge.pack.half.convert import half_model
from s2a_edge.pack.half.formats import HALVES
from s2a_edge.pack.half.twin import float32_twin
from s2a_edge.pack.lower import lower
from s2a_edge.pack.merge_views import merge_views
from s2a_edge.pack.network import (
    INFER_BATCH,
    adapted_backbone,
    columns_of_slices,
    sliced_backbone,
)
from s2a_edge.pack.optimizer import optimizer_model
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan.pool import pooled_values
from s2a_edge.pack.precision import Policy, Precision
from s2a_edge.pack.slice_products import read_transposed, slice_products
from s2a_edge.pack.training_steps import (
    fixed_policy,
    give_pool,
    native_form,
    press,
    put_in_order,
    training_steps,
    usable_threads,
)
from s2a_edge.spec.errors import BudgetError, InternalError
from s2a_edge.spec.state_layout import state_layout
from s2a_edge.spec.units import format_bytes

# From so many samples on, the uncompressed step runs in two halves.
_HALVED_FROM = 8


@dataclass(frozen=True)
class Allocated:
    """Bits chosen by measurement.

    Attributes:
        measured: makes allocations for other numbers of bytes, too.
        allocation: the one that was taken.
    """

    measured: Measured
    allocation: Allocation


@dataclass(frozen=True)
class Compiled:
    """All graphs of a bundle, not yet planned or written.

    Attributes:
        backbone: as captured for the largest micro-batch.
        adapted: with its trainables, for the largest micro-batch.
        steps: micro-batch -> compressed training step.
        references: samples -> the largest step with nothing compressed, for all of its samples or
            half of them: it needs many times the memory, and gradients add up.
        eval_batch: samples per run of the evaluation graph.
        evaluation, inference, optimizer: the other graphs.
        samples: what gradients are measured on.
        allocated: how bits were chosen, with ``--bits auto``.
        by_batch: micro-batch -> what its step is made of, to make it again with other bits.
        coder: how frozen weights are kept.
        uncoded_evaluation: the evaluation graph with float32 weights; None where none is coded.
    """

    backbone: Backbone
    adapted: Adapted
    steps: dict[int, StepGraph]
    references: dict[int, StepGraph]
    eval_batch: int
    evaluation: ir.Model
    inference: ir.Model
    optimizer: ir.Model
    samples: Samples
    allocated: Allocated | None
    by_batch: dict[int, Adapted]
    coder: FrozenCoder
    uncoded_evaluation: ir.Model | None

    @property
    def trainables(self) -> tuple[Trainable, ...]:
        """In the order of the graphs' inputs."""
        return self.adapted.trainables

    @property
    def models(self) -> tuple[ir.Model, ...]:
        """Every model whose weights the bundle must hold."""
        return (*(s.model for s in self.steps.values()), self.evaluation, self.inference)


def compile_backbone(captured: Captured, options: PackOptions,
                     on_stage: Callable[[str, str], None],
                     allocated: Allocated | None = None) -> Compiled:
    """Normalizes, adapts and differentiates ``captured`` for every batch of the recipe.

    With ``allocated``, bits that were chosen before instead of ``options.bits``.

    Raises:
        UnsupportedOperatorError: before any other work, with all operators that lack a rule.
        SourceError: if the backbone cannot be made static.
    """
    batches = sorted(options.micro_batches)
    largest = batches[-1]
    on_stage("normalize", f"batch {largest}")
    backbone, adapted = adapted_backbone(captured, largest, options)
    require_rules(adapted)
    require_gradients(adapted)
    by_batch = {largest: adapted}
    part = _reference_batch(captured, options)
    for batch in {*batches, INFER_BATCH, part} - {largest}:
        on_stage("normalize", f"batch {batch}")
        by_batch[batch] = adapted_backbone(captured, batch, options)[1]
    _same_trainables(by_batch)
    samples = calibration_samples(backbone, options, on_stage, captured.tokenizer)
    own_loss = options.loss == "output"
    inference = (predictions_model if own_loss else forward_model)(by_batch[INFER_BATCH], "infer")
    columns = columns_of_slices(options)
    sliced = {batch: slice_products(whole, columns) for batch, whole in by_batch.items()}
    by_batch = {batch: s.adapted for batch, s in sliced.items()}
    adapted = by_batch[largest]
    read_transposed(inference, sliced[largest].transposed)
    references = {part: differentiate(by_batch[part], Precision(32, "store"), options.loss)}
    if options.bits == "auto" and allocated is None:
        small = _small(captured, by_batch, options)
        saved = differentiate(adapted, Precision(32, "store"), options.loss,
                              recompute=options.recompute).saved
        measured = measured_allocator(
            small, saved, largest, samples, loss=options.loss,
            threads=usable_threads(options), attention=options.attention, wholes=(inference,),
            recompute=options.recompute, on_stage=on_stage)
        allocated = Allocated(measured, allocation_within(
            measured.allocator, _capacity_bytes(adapted, largest, options)))
    policy = fixed_policy(options) if allocated is None else allocated.allocation
    on_stage("differentiate", f"{len(adapted.trainables)} trainables, {options.bits} bits")
    micro = _fronts(captured, by_batch, batches, policy, options)
    evaluation = loss_model(adapted, "eval") if own_loss else forward_model(micro[largest], "eval")
    for model in (references[part].model, evaluation, inference):
        lower(model)
        merge_views(model)
    if options.frozen != "fp32":
        on_stage("weights", options.frozen)
    initial = {t.name: t.initial for t in adapted.trainables}
    # Of noise they say nothing about data: the output's error is that of the nearest codes.
    moments = second_moments(evaluation, samples, initial, usable_threads(options)
                             ) if options.frozen == "int4" and len(samples) else None
    coder = FrozenCoder(options.frozen, evaluation, inference, HALVES.get(options.precision),
                        emulate=options.emulate, moments=moments)
    uncoded = evaluation.clone() if coder else None
    coder.apply(references[part].model)
    evaluation = _evaluation(evaluation, coder)
    put_in_order(evaluation, options)
    steps = training_steps(micro, policy, coder, options)
    on_stage("schedule", f"{sum(len(s.model.graph) for s in steps.values())} nodes")
    layout = state_layout((t.name, t.initial.size, t.decay) for t in adapted.trainables)
    optimizer = optimizer_model(layout.chunk_elements, options.optimizer)
    check_emitted(optimizer)
    if pooled_values(steps[largest].model):  # the optimizer's chunks are small
        give_pool(evaluation, options)
    return Compiled(backbone, adapted, steps, references, largest, evaluation,
                    inference, optimizer, samples, allocated, micro, coder, uncoded)


def _evaluation(model: ir.Model, coder: FrozenCoder) -> ir.Model:
    """The evaluation graph as the bundle has it."""
    half = coder.half
    made = model if half is None else half_model(model, half)
    coder.apply(made)
    return float32_twin(made, half) if half is not None and coder.emulate else made


def _fronts(captured: Captured, by_batch: Mapping[int, Adapted], batches: Sequence[int],
            policy: Policy, options: PackOptions) -> dict[int, Adapted]:
    """The network for each micro-batch, its wide front in parts where samples are independent."""
    joint = options.loss == "output" or captured.fixed_batch not in (None, 1)
    if joint or options.front == "whole":
        return {batch: by_batch[batch] for batch in batches}

    def part_of(samples: int) -> Adapted:
        if samples in by_batch:
            return by_batch[samples]
        return sliced_backbone(captured, samples, options)[1].adapted

    return in_parts(by_batch, batches, part_of, policy, options)


def allocation_within(allocator: Allocator, capacity_bytes: int) -> Allocation:
    """The allocation of least error in so many bytes of the largest micro-batch.

    Raises:
        BudgetError: if there is none.
    """
    found = allocator.within(capacity_bytes)
    if found is not None:
        return found
    least, given = (size // allocator.batch for size in (allocator.smallest_bytes, capacity_bytes))
    raise BudgetError(
        where="--bits auto", expected=f"at least {format_bytes(least)} of saved values per sample",
        got=format_bytes(max(0, given)), missing_bytes=allocator.smallest_bytes - capacity_bytes,
        todo="allow more (--saved-budget, --budget), tune fewer blocks (--blocks), or take a "
        "smaller micro-batch or input")


def native_step(compiled: Compiled, batch: int, options: PackOptions) -> StepGraph | None:
    """One training step with kernels in C; None where it has no node that could use one.

    Kernels compute in float32: in half precision there is none.
    """
    if compiled.coder.half is not None:
        return None
    chosen = compiled.allocated
    policy = fixed_policy(options) if chosen is None else chosen.allocation
    step = native_form(compiled.by_batch[batch], compiled.steps[batch], policy, compiled.coder,
                       options)
    if step is not None:
        press(step.model, options)
    return step


def _reference_batch(captured: Captured, options: PackOptions) -> int:
    """Samples of the uncompressed step; a graph's own loss may be a mean over all of them."""
    largest = max(options.micro_batches)
    whole = captured.fixed_batch not in (None, 1) or options.loss == "output"
    return largest if whole or largest % 2 or largest < _HALVED_FROM else largest // 2


def _small(captured: Captured, by_batch: Mapping[int, Adapted], options: PackOptions) -> Adapted:
    """The backbone for the few samples that sensitivities are measured on."""
    fixed = captured.fixed_batch if captured.fixed_batch != 1 else None
    batch = fixed or min(PROBE_BATCH, max(by_batch), options.calibration_samples)
    if batch in by_batch:
        return by_batch[batch]
    return sliced_backbone(captured, batch, options)[1].adapted


def _capacity_bytes(adapted: Adapted, batch: int, options: PackOptions) -> int:
    """What saved values of the largest micro-batch may take at first."""
    if options.saved_budget_bytes is not None:
        return options.saved_budget_bytes * batch
    uniform = differentiate(adapted, fixed_policy(options), options.loss,
                            recompute=options.recompute)
    return sum(s.stored_bytes for s in uniform.saved)


def _same_trainables(by_batch: dict[int, Adapted]) -> None:
    """A checkpoint must fit every graph: names and shapes may not depend on the batch."""
    names = {batch: [(t.name, t.initial.shape) for t in adapted.trainables]
             for batch, adapted in by_batch.items()}
    first = next(iter(names.values()))
    for batch, other in names.items():
        if other != first:
            raise InternalError(where=f"graph of batch {batch}", expected="the same trainables",
                                got=str(sorted(set(other) ^ set(first))[:4]), todo="report this")
