"""The source of a pack; its network at one batch: with trainables and head, its products sliced."""

from __future__ import annotations

from s2a_edge.pack.adapt import Adapted, adapt
from s2a_edge.pack.blocks import find_blocks
from s2a_edge.pack.capture import Backbone, Captured, open_source
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.normalize import normalize
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.regroup import slices_to_splits
from s2a_edge.pack.slice_products import MOST_COLUMNS, Sliced, slice_products
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import TunedBlock

# Export runs one sample at a time on any device.
INFER_BATCH = 1
# At most so many samples at a time: with coded weights, MLPs are sliced otherwise.
FEW_SAMPLES = 2


def capture_source(source: str, options: PackOptions) -> Captured:
    """What a recipe packs: ``source``, cut and prepared as ``options`` say.

    Raises:
        SourceError: it cannot be read.
    """
    return open_source(source, input_shape=options.input_shape, weights=options.weights,
                       features=options.features, pool=options.pool, seed=options.seed,
                       loss=options.loss_output, tokenizer=options.tokenizer,
                       **options.preprocessing)


def adapted_backbone(captured: Captured, batch: int, options: PackOptions,
                     ) -> tuple[Backbone, Adapted]:
    """The backbone for one batch, normalized, and the same with its trainables and head.

    Raises:
        SourceError: it cannot be made static, or nothing of it would train.
    """
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


def sliced_backbone(captured: Captured, batch: int, options: PackOptions,
                    ) -> tuple[Backbone, Sliced]:
    """The backbone for one batch, normalized, and its network with wide products taken apart.

    Raises:
        SourceError: as :func:`adapted_backbone`.
    """
    backbone, adapted = adapted_backbone(captured, batch, options)
    return backbone, slice_products(adapted, columns_of_slices(options))


def columns_of_slices(options: PackOptions) -> int:
    """Columns of an MLP's slices.

    With one or two samples at a time and coded weights, what a session takes for each node is more
    than what narrow slices save: half as many slices of ViT-B/16 are 6 MiB less of sessions.
    """
    few = options.frozen != "fp32" and max(options.micro_batches) <= FEW_SAMPLES
    return 2 * MOST_COLUMNS if few else MOST_COLUMNS


def list_blocks(captured: Captured) -> tuple[TunedBlock, ...]:
    """The blocks that ``--blocks`` chooses from, in order; none of them tuned yet.

    Raises:
        SourceError: if the backbone cannot be made static.
    """
    backbone = normalize(captured.at_batch(INFER_BATCH))
    slices_to_splits(backbone.model)
    found = find_blocks(backbone.model.graph, backbone.data_inputs, backbone.features)
    return tuple(TunedBlock(b.name, shape_of(b.output)[1:], b.residual, ()) for b in found)


__all__ = ["FEW_SAMPLES", "INFER_BATCH", "adapted_backbone", "capture_source",
           "columns_of_slices", "list_blocks", "sliced_backbone"]
