"""A candidate compiled and planned, never run: its exact memory, and the work of its operators.

Drafts share what they can: the adapted backbone of a batch, the codes of the frozen weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted, Trainable
from s2a_edge.pack.allocation.measured import Measured
from s2a_edge.pack.capture import Captured
from s2a_edge.pack.compile import Allocated, allocation_within
from s2a_edge.pack.differentiate import StepGraph, differentiate
from s2a_edge.pack.emit import weights_bytes
from s2a_edge.pack.forward_graphs import forward_model, loss_model, predictions_model
from s2a_edge.pack.frozen.decode_nodes import FrozenCoder
from s2a_edge.pack.lower import lower
from s2a_edge.pack.merge_views import merge_views
from s2a_edge.pack.network import INFER_BATCH, adapted_backbone, columns_of_slices, sliced_backbone
from s2a_edge.pack.optimizer import optimizer_model
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import ArenaPlan, plan_arena
from s2a_edge.pack.precision import Policy, Precision
from s2a_edge.pack.search.candidates import Candidate
from s2a_edge.pack.search.work import GraphWork, Work, graph_work
from s2a_edge.pack.slice_products import Sliced, read_transposed
from s2a_edge.pack.training_steps import (
    fixed_policy,
    native_form,
    training_steps,
    usable_threads,
)
from s2a_edge.spec.state_layout import state_layout


@dataclass(frozen=True)
class Draft:
    """What is known of a candidate without running it.

    Attributes:
        train, evaluation, optimizer: what the three graphs need of the arena.
        weights_bytes: of the file of frozen weights.
        trainables: by name how many elements, and whether they decay.
        blocks: how many blocks the backbone has.
        work: of the training step, in the form that will run.
        optimizer_work: of the update, all of its chunks.
        signature: what is kept and how; candidates that are alike in it have the same step.
    """

    train: ArenaPlan
    evaluation: ArenaPlan
    optimizer: ArenaPlan
    weights_bytes: int
    trainables: Mapping[str, tuple[int, bool]]
    blocks: int
    work: GraphWork = field(repr=False)
    optimizer_work: GraphWork = field(repr=False)
    signature: tuple[tuple[str, str, float], ...] = field(repr=False)


@dataclass(frozen=True)
class Steps:
    """The training step of a candidate: ``native`` with kernels in C, where there are any."""

    portable: StepGraph
    native: StepGraph | None
    coder: FrozenCoder
    others: tuple[ir.Model, ...]
    trainables: tuple[Trainable, ...]

    @property
    def timed(self) -> StepGraph:
        """The form that a run takes where it can."""
        return self.native or self.portable


@dataclass(frozen=True)
class _Forward:
    """Evaluation and inference of one batch, storage and depth."""

    evaluation: ir.Model
    inference: ir.Model
    coder: FrozenCoder


class Drafts:
    """Drafts of candidates.

    Args:
        captured: the source.
        base: options of the pack.
        native: steps will run with kernels in C.
    """

    def __init__(self, captured: Captured, base: PackOptions, *, native: bool) -> None:
        self.base = base
        self._captured = captured
        self._native = native
        self.measured: Measured | None = None
        self._sliced: dict[tuple[int, str, int], Sliced] = {}
        self._whole: dict[str, Adapted] = {}
        self._forwards: dict[tuple[int, str, str], _Forward] = {}
        self._coders: dict[tuple[str, str, int], FrozenCoder] = {}
        self._made: dict[Candidate, Draft] = {}
        self._ordered: dict[Candidate, Draft] = {}
        self._last: tuple[Candidate, Steps] | None = None
        self._plans: dict[tuple[int, str, str], ArenaPlan] = {}
        self._sizes: dict[tuple[str, str, int], int] = {}

    @property
    def made(self) -> int:
        """How many candidates were compiled."""
        return len(self._made)

    def draft(self, candidate: Candidate) -> Draft:
        """The draft of ``candidate``; made once."""
        if candidate not in self._made:
            self._made[candidate] = self._draft(candidate)
        return self._made[candidate]

    def ordered(self, candidate: Candidate) -> Draft:
        """The draft with the bundle's order of the training step, whose arena is smaller."""
        draft = self.draft(candidate)
        if candidate not in self._ordered:
            options, batch = candidate.options(self.base), candidate.micro_batch
            step = training_steps({batch: self.sliced(candidate).adapted}, self.policy(candidate),
                                  self._forward(candidate).coder, options)[batch]
            threads = usable_threads(self.base)
            plan = plan_arena(step.model, threads=threads)
            self._ordered[candidate] = replace(draft, train=plan)
            if plan.pool_bytes:  # then the evaluation graph has one too
                evaluation = plan_arena(self._forward(candidate).evaluation, threads=threads,
                                        pool=True)
                self._ordered[candidate] = replace(draft, train=plan, evaluation=evaluation)
        return self._ordered[candidate]

    def steps(self, candidate: Candidate) -> Steps:
        """The step itself, to be run; the last one is at hand."""
        if self._last is None or self._last[0] != candidate:
            self._last = candidate, self._steps(candidate)
        return self._last[1]

    def _steps(self, candidate: Candidate) -> Steps:
        # A search for a better order takes seconds and can only make the arena smaller.
        options = replace(candidate.options(self.base), order="naive")
        adapted = self.sliced(candidate).adapted
        forward = self._forward(candidate)
        policy = self.policy(candidate)
        portable = training_steps({candidate.micro_batch: adapted}, policy, forward.coder,
                                  options)[candidate.micro_batch]
        native = native_form(adapted, portable, policy, forward.coder,
                             options) if self._native else None
        return Steps(portable, native, forward.coder, (forward.evaluation, forward.inference),
                     adapted.trainables)

    def codes_weights(self, candidate: Candidate) -> bool:
        """Whether any frozen weight is kept in another form than float32."""
        return bool(self._forward(candidate).coder)

    def allocated(self, candidate: Candidate) -> Allocated | None:
        """The bits of a candidate that has an allocation."""
        share = candidate.saves.share
        if share is None:
            return None
        assert self.measured is not None, "sensitivities come first"
        options = candidate.options(self.base)
        adapted, batch = self.sliced(candidate).adapted, candidate.micro_batch
        exact = differentiate(adapted, Precision(32, "store"), options.loss,
                              recompute=options.recompute).saved
        measured = self.measured.of_step(exact, batch, options.attention,
                                         {t.name for t in adapted.trainables})
        uniform = differentiate(adapted, fixed_policy(options), options.loss,
                                recompute=options.recompute).saved
        capacity = int(share * sum(s.stored_bytes for s in uniform))
        capacity = max(capacity, measured.allocator.smallest_bytes)
        return Allocated(measured, allocation_within(measured.allocator, capacity))

    def policy(self, candidate: Candidate) -> Policy:
        """How the candidate's step keeps its values."""
        allocated = self.allocated(candidate)
        return fixed_policy(candidate.options(self.base)) if allocated is None \
            else allocated.allocation

    def sliced(self, candidate: Candidate) -> Sliced:
        """The adapted backbone of the candidate's batch and depth."""
        options = candidate.options(self.base)
        key = candidate.micro_batch, candidate.blocks, columns_of_slices(options)
        if key not in self._sliced:
            self._sliced[key] = sliced_backbone(self._captured, candidate.micro_batch, options)[1]
        return self._sliced[key]

    def _forward(self, candidate: Candidate) -> _Forward:
        options = candidate.options(self.base)
        key = candidate.micro_batch, candidate.frozen, candidate.blocks
        if key in self._forwards:
            return self._forwards[key]
        own_loss = options.loss == "output"
        if candidate.blocks not in self._whole:
            self._whole[candidate.blocks] = adapted_backbone(self._captured, INFER_BATCH,
                                                             options)[1]
        sliced = self.sliced(candidate)
        inference = (predictions_model if own_loss else forward_model)(
            self._whole[candidate.blocks], "infer")
        read_transposed(inference, sliced.transposed)
        evaluation = (loss_model if own_loss else forward_model)(sliced.adapted, "eval")
        for model in (evaluation, inference):
            lower(model)
            merge_views(model)
        columns = columns_of_slices(options)
        coder_key = candidate.frozen, candidate.blocks, columns
        if coder_key not in self._coders:
            self._coders[coder_key] = FrozenCoder(candidate.frozen, evaluation, inference)
        coder = self._coders[coder_key]
        coder.apply(evaluation)
        self._forwards[key] = _Forward(evaluation, inference, coder)
        return self._forwards[key]

    def _draft(self, candidate: Candidate) -> Draft:
        steps = self.steps(candidate)
        threads = usable_threads(self.base)
        options = candidate.options(self.base)
        forward = self._forward(candidate)
        plans = self._plans
        key = candidate.micro_batch, candidate.frozen, candidate.blocks
        if key not in plans:
            plans[key] = plan_arena(forward.evaluation, threads=threads)
        layout = state_layout((t.name, t.initial.size, t.decay) for t in steps.trainables)
        optimizer = optimizer_model(layout.chunk_elements, options.optimizer)
        chunks = layout.elements // layout.chunk_elements
        update_work = {kind: Work(chunks * w.nodes, chunks * w.flops, chunks * w.size_bytes)
                       for kind, w in graph_work(optimizer.graph).items()}
        update = 0, "", candidate.blocks
        if update not in plans:
            plans[update] = plan_arena(optimizer, threads=threads)
        sizes = candidate.frozen, candidate.blocks, columns_of_slices(options)
        if sizes not in self._sizes:
            self._sizes[sizes] = weights_bytes((steps.portable.model, *steps.others),
                                               steps.coder.wholes)
        return Draft(
            plan_arena(steps.portable.model, threads=threads), plans[key], plans[update],
            self._sizes[sizes], {t.name: (t.initial.size, t.decay) for t in steps.trainables},
            len(self.sliced(candidate).adapted.blocks), graph_work(steps.timed.model.graph),
            update_work,
            tuple((s.key, s.codec, s.bits) for s in steps.portable.saved))


__all__ = ["Draft", "Drafts", "Steps"]
