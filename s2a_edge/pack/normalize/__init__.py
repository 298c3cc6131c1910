"""Normalize: the same function in fewer, larger operators, with names that users know."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes import common as passes

from s2a_edge.pack.capture.backbone import Backbone
from s2a_edge.pack.normalize.activation import fuse_activations
from s2a_edge.pack.normalize.attention import drop_nan_guards, fuse_transposed_keys
from s2a_edge.pack.normalize.batch_norm import fold_batch_norms
from s2a_edge.pack.normalize.canonical import spell_canonically
from s2a_edge.pack.normalize.cleanup import drop_no_ops, merge_reshapes, merge_transposes
from s2a_edge.pack.normalize.einsum import expand_einsums
from s2a_edge.pack.normalize.group_norm import fuse_group_norms
from s2a_edge.pack.normalize.invariants import check_normalized
from s2a_edge.pack.normalize.layer_norm import fuse_layer_norms
from s2a_edge.pack.normalize.linear import order_biases
from s2a_edge.pack.normalize.losses import spell_out_losses
from s2a_edge.pack.normalize.masks import make_masks_finite
from s2a_edge.pack.normalize.narrow import narrow_selections
from s2a_edge.pack.normalize.padding import make_padding_explicit
from s2a_edge.pack.normalize.parameters import own_parameters
from s2a_edge.pack.normalize.row_norm import fuse_row_norms
from s2a_edge.pack.normalize.softmax import unflatten_softmax

_REWRITES = (
    drop_no_ops,
    make_masks_finite,
    drop_nan_guards,
    spell_out_losses,
    make_padding_explicit,
    spell_canonically,
    expand_einsums,
    fold_batch_norms,
    fuse_group_norms,
    fuse_layer_norms,
    fuse_row_norms,
    fuse_activations,
    merge_transposes,
    fuse_transposed_keys,
    merge_reshapes,
    unflatten_softmax,
    drop_no_ops,
    narrow_selections,
    order_biases,
    own_parameters,
)


def normalize(backbone: Backbone) -> Backbone:
    """The backbone in the forms that the later stages know; it computes the same features.

    BatchNormalization is folded where a layer precedes it, LayerNorm, GroupNorm and GELU are single
    operators, keys of attention stay token-major, every bias and norm parameter is an initializer
    of its own named after its module, and what changes nothing is gone. The argument is left as it
    was.

    Raises:
        SourceError: if a normalization takes its statistics from the batch.
        InternalError: if the result breaks an invariant.
    """
    model = backbone.model.clone()
    graph = model.graph
    for rewrite in _REWRITES:
        rewrite(graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    _name_nodes(graph)
    result = replace(backbone, model=model, data_inputs=tuple(graph.inputs),
                     features=graph.outputs[0], predictions=tuple(graph.outputs[1:]))
    check_normalized(result)
    return result


def _name_nodes(graph: ir.Graph) -> None:
    """Unique node names, after the value that a node computes."""
    for node in graph:
        node.name = f"n_{node.outputs[0].name}"


__all__ = ["check_normalized", "normalize"]
