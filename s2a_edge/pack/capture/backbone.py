"""A captured backbone: one forward graph with static shapes, for one batch size."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.spec.manifest import AnyPreprocessing, Source


@dataclass(frozen=True)
class Backbone:
    """A frozen forward graph that ends in the features a new head will sit on, or in its own loss.

    Attributes:
        model: opset 21; every value has a static shape and a dtype; ``features`` is its output.
        data_inputs: the graph's inputs, each [batch, ...].
        features: [batch, D] float32; of a graph that is its own loss, that scalar.
        preprocessing: how an image or a text becomes the inputs; None where they are neither.
        source: where it came from, as the manifest records it.
        batch: the length of the first axis.
        predictions: what a graph with its own loss gives besides, [batch, ...] each.
    """

    model: ir.Model
    data_inputs: tuple[ir.Value, ...]
    features: ir.Value
    preprocessing: AnyPreprocessing | None
    source: Source
    batch: int
    predictions: tuple[ir.Value, ...] = ()
