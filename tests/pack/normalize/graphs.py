"""Small graphs, given in ONNX's text form, as backbones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper, parser

from s2a_edge.pack.capture.backbone import Backbone
from s2a_edge.pack.capture.modules import name_modules
from s2a_edge.pack.capture.static_shapes import make_static
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.spec.manifest import Source
from tests.pack.capture.running import random_inputs, relative_error, run_model

_SOURCE = Source(kind="onnx", name="test.onnx", weights=None, features=None, pool=None, opset=21)


def backbone(text: str, weights: Mapping[str, np.ndarray | np.generic],
             names: dict[str, str] | None = None, rename: dict[str, str] | None = None,
             ) -> Backbone:
    """A backbone from ``agraph (inputs) => (outputs) { nodes }``.

    Args:
        text: the graph, in ONNX's text form.
        weights: initializers.
        names: output value -> name of its node, for modules in paths.
        rename: initializer -> the name that it gets; the text form allows no dots.
    """
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> {text}')
    for node in proto.graph.node:
        node.name = (names or {}).get(node.output[0], "")
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    model = ir.from_proto(proto)
    for old, new in (rename or {}).items():
        model.graph.initializers[old].name = new
    name_modules(model.graph)
    make_static(model)
    outputs = model.graph.outputs
    return Backbone(model, tuple(model.graph.inputs), outputs[0], None, _SOURCE,
                    shape_of(outputs[0])[0])


def ops(result: Backbone) -> list[str]:
    return [node.op_type for node in result.model.graph]


def node(result: Backbone, op_type: str) -> ir.Node:
    (found,) = [n for n in result.model.graph if n.op_type == op_type]
    return found


def difference(before: Backbone, after: Backbone, seed: int = 0) -> float:
    """Relative difference of the two graphs' outputs on random inputs."""
    feeds = random_inputs(before, seed)
    lowered = after.model.clone()
    lower(lowered)
    return relative_error(run_model(lowered, feeds), run_model(before.model, feeds))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


__all__ = ["backbone", "difference", "node", "normal", "ops"]
