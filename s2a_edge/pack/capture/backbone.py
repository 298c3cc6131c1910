"""A captured backbone: one forward graph with static shapes, for one batch size."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.spec.manifest import Preprocessing, Source


@dataclass(frozen=True)
class Backbone:
    """A frozen forward graph that ends in the features a new head will sit on.

    Attributes:
        model: opset 21; every value has a static shape and a dtype; ``features`` is its output.
        data_inputs: the graph's inputs, each [batch, ...].
        features: [batch, D] float32.
        preprocessing: how an image becomes the input; None where the input is not an image.
        source: where it came from, as the manifest records it.
        batch: the length of the first axis.
    """

    model: ir.Model
    data_inputs: tuple[ir.Value, ...]
    features: ir.Value
    preprocessing: Preprocessing | None
    source: Source
    batch: int
