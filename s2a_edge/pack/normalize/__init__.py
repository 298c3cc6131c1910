"""Normalize: the same function in fewer, larger operators, with names that users know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from s2a_edge.pack.capture.backbone import Backbone
from s2a_edge.pack.capture.captured import Captured
from s2a_edge.pack.normalize.activation import fuse_activations
from s2a_edge.pack.normalize.attention import fuse_transposed_keys
from s2a_edge.pack.normalize.batch_norm import fold_batch_norms
from s2a_edge.pack.normalize.cleanup import drop_no_ops, merge_reshapes, merge_transposes
from s2a_edge.pack.normalize.invariants import check_normalized
from s2a_edge.pack.normalize.layer_norm import fuse_layer_norms
from s2a_edge.pack.normalize.linear import order_biases
from s2a_edge.pack.normalize.modules import name_modules
from s2a_edge.pack.normalize.parameters import own_parameters

_SHARED_BYTES = 1024  # smaller constants (shapes, axes) may differ between batches

_REWRITES = (drop_no_ops, fold_batch_norms, fuse_layer_norms, fuse_activations, merge_transposes,
             fuse_transposed_keys, merge_reshapes, drop_no_ops, order_biases, own_parameters)


def normalize(backbone: Backbone) -> Backbone:
    """The backbone in the forms that the later stages know; it computes the same features.

    BatchNormalization is folded, LayerNorm and GELU are single operators, keys of attention stay
    token-major, every bias and norm parameter is an initializer of its own named after its
    module, and what changes nothing is gone. The argument is left as it was.

    Raises:
        SourceError: if a normalization takes its statistics from the batch.
        InternalError: if the result breaks an invariant.
    """
    model = backbone.model.clone()
    graph = model.graph
    name_modules(graph)
    for rewrite in _REWRITES:
        rewrite(graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    _name_nodes(graph)
    result = replace(backbone, model=model, data_inputs=tuple(graph.inputs),
                     features=graph.outputs[0])
    check_normalized(result)
    return result


def normalize_batches(captured: Captured, batches: Iterable[int]) -> dict[int, Backbone]:
    """A normalized backbone for each batch, with the same names over the same weight memory."""
    done: dict[int, Backbone] = {}
    tensors: dict[str, ir.TensorProtocol] = {}
    for batch in batches:
        backbone = normalize(captured.at_batch(batch))
        _share_weights(backbone.model.graph, tensors, batch)
        done[batch] = backbone
    return done


def _share_weights(graph: ir.Graph, tensors: dict[str, ir.TensorProtocol], batch: int) -> None:
    """Uses the tensor of an earlier batch where the data is the same.

    A large constant whose data depends on the batch gets a name with the batch in it.
    """
    for name, value in list(graph.initializers.items()):
        own, earlier = value.const_value, tensors.get(name)
        assert own is not None
        if own.nbytes <= _SHARED_BYTES:
            continue
        if earlier is None:
            tensors[name] = own
        elif own.shape == earlier.shape and np.array_equal(own.numpy(), earlier.numpy()):
            value.const_value = earlier
        else:
            value.name = f"{name}_b{batch}"


def _name_nodes(graph: ir.Graph) -> None:
    """Unique node names, after the value that a node computes."""
    for node in graph:
        node.name = f"n_{node.outputs[0].name}"


__all__ = ["check_normalized", "normalize", "normalize_batches"]
