"""From a captured backbone to the graphs of a bundle: the pure stages in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted, Trainable, adapt
from s2a_edge.pack.blocks import find_blocks
from s2a_edge.pack.capture import Backbone, Captured
from s2a_edge.pack.differentiate import (
    StepGraph,
    differentiate,
    forward_model,
    loss_model,
    predictions_model,
    require_gradients,
    require_rules,
)
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.pack.normalize import normalize
from s2a_edge.pack.optimizer import optimizer_model
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.regroup import slices_to_splits
from s2a_edge.pack.schedule import schedule
from s2a_edge.pack.slice_products import read_transposed, slice_products
from s2a_edge.spec.errors import InternalError, SourceError
from s2a_edge.spec.manifest import TunedBlock

# Export runs one sample at a time on any device.
_INFER_BATCH = 1


@dataclass(frozen=True)
class Compiled:
    """All graphs of a bundle, not yet planned or written.

    Attributes:
        backbone: as captured for the largest micro-batch.
        adapted: with its trainables, for the largest micro-batch.
        steps: micro-batch -> compressed training step.
        references: micro-batch -> the same step with nothing compressed.
        eval_batch: samples per run of the evaluation graph.
        evaluation, inference, optimizer: the other graphs.
    """

    backbone: Backbone
    adapted: Adapted
    steps: dict[int, StepGraph]
    references: dict[int, StepGraph]
    eval_batch: int
    evaluation: ir.Model
    inference: ir.Model
    optimizer: ir.Model

    @property
    def trainables(self) -> tuple[Trainable, ...]:
        """In the order of the graphs' inputs."""
        return self.adapted.trainables

    @property
    def models(self) -> tuple[ir.Model, ...]:
        """Every model whose weights the bundle must hold."""
        return (*(s.model for s in self.steps.values()), self.evaluation, self.inference)


def compile_backbone(captured: Captured, options: PackOptions,
                     on_stage: Callable[[str, str], None]) -> Compiled:
    """Normalizes, adapts and differentiates ``captured`` for every batch of the recipe.

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
    for batch in {*batches, _INFER_BATCH} - {largest}:
        on_stage("normalize", f"batch {batch}")
        by_batch[batch] = adapted_backbone(captured, batch, options)[1]
    _same_trainables(by_batch)
    own_loss = options.loss == "output"
    inference = (predictions_model if own_loss else forward_model)(by_batch[_INFER_BATCH], "infer")
    sliced = {batch: slice_products(whole) for batch, whole in by_batch.items()}
    by_batch = {batch: s.adapted for batch, s in sliced.items()}
    adapted = by_batch[largest]
    read_transposed(inference, sliced[largest].transposed)
    precision = Precision(options.bits, options.attention)
    on_stage("differentiate", f"{len(adapted.trainables)} trainables, {options.bits} bits")
    steps = {b: differentiate(by_batch[b], precision, options.loss) for b in batches}
    on_stage("schedule", f"{sum(len(s.model.graph) for s in steps.values())} nodes")
    references = {largest: differentiate(adapted, Precision(32, "store"), options.loss)}
    evaluation = loss_model(adapted, "eval") if own_loss else forward_model(adapted, "eval")
    for model in (*(s.model for s in (*steps.values(), *references.values())), evaluation,
                  inference):
        lower(model)
    optimizer = optimizer_model(adapted.trainables, options.optimizer)
    for step in steps.values():
        schedule(step.model)
        check_emitted(step.model)
    check_emitted(optimizer)
    return Compiled(backbone, adapted, steps, references, largest, evaluation,
                    inference, optimizer)


def adapted_backbone(captured: Captured, batch: int, options: PackOptions,
                     ) -> tuple[Backbone, Adapted]:
    """The backbone for one batch, normalized, and the same with its trainables and head."""
    backbone = normalize(captured.at_batch(batch))
    slices_to_splits(backbone.model)
    adapted = adapt(backbone.model, backbone.data_inputs, backbone.features,
                    classes=None if options.loss == "output" else options.class_count,
                    tuning=options.tuning, seed=options.seed, predictions=backbone.predictions)
    if not adapted.trainables:
        raise SourceError(where=f"--adapters {','.join(options.adapters)}",
                          expected="something to train", got="nothing, since no head is added to a "
                          "graph that is its own loss", todo="add an adapter, such as bias")
    return backbone, adapted


def list_blocks(captured: Captured) -> tuple[TunedBlock, ...]:
    """The blocks that ``--blocks`` chooses from, in order; none of them tuned yet.

    Raises:
        SourceError: if the backbone cannot be made static.
    """
    backbone = normalize(captured.at_batch(_INFER_BATCH))
    slices_to_splits(backbone.model)
    found = find_blocks(backbone.model.graph, backbone.data_inputs, backbone.features)
    return tuple(TunedBlock(b.name, shape_of(b.output)[1:], b.residual, ()) for b in found)


def _same_trainables(by_batch: dict[int, Adapted]) -> None:
    """A checkpoint must fit every graph: names and shapes may not depend on the batch."""
    names = {batch: [(t.name, t.initial.shape) for t in adapted.trainables]
             for batch, adapted in by_batch.items()}
    first = next(iter(names.values()))
    for batch, other in names.items():
        if other != first:
            raise InternalError(where=f"graph of batch {batch}", expected="the same trainables",
                                got=str(sorted(set(other) ^ set(first))[:4]), todo="report this")
