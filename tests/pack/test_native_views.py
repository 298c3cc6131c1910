"""Reshapes around kernels in C go, wherever nobody minds."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from s2a_edge.native import find_library
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import KIND_KEY, shape_of
from s2a_edge.pack.merge_views import is_view
from s2a_edge.pack.native_ops import native
from s2a_edge.pack.native_views import merge_native_views


def _model(*, other_shape: bool = False, kind: str = "") -> ir.Model:
    """|x| [2, 6, 8] -> [12, 8] -> [96] -> Add3 -> [12, 8] -> Neg, and to [4, 24] if asked for."""
    g = GraphBuilder(native=True)
    x = g.input("x", ir.DataType.FLOAT, (2, 6, 8))
    below = g.op("Abs", x)
    flat = g.op("Reshape", g.op("Reshape", below, g.constant([12, 8])), g.constant([96]))
    if kind:
        flat.metadata_props[KIND_KEY] = kind
    total = native(g, "Add3", flat, flat, flat, shape=(2, 6, 8))
    outputs = [g.op("Neg", g.op("Reshape", total, g.constant([12, 8])))]
    if other_shape:
        outputs.append(g.op("Neg", g.op("Reshape", total, g.constant([4, 24]))))
    return model_of([x], outputs, g, "views")


def _views(model: ir.Model) -> int:
    return sum(is_view(node) for node in model.graph)


def test_a_kernel_reads_below_views_and_makes_what_is_wanted() -> None:
    model = _model()
    merge_native_views(model)
    below, kernel, negated = model.graph
    assert list(kernel.inputs) == list(below.outputs) * 3
    assert shape_of(kernel.outputs[0]) == (12, 8) == shape_of(negated.outputs[0])
    assert list(kernel.attributes.get_ints("shape") or ()) == [12, 8]
    assert negated.inputs[0] is kernel.outputs[0]
    assert not [v for v in model.graph.initializers.values() if not v.uses()]


def test_two_wishes_keep_their_views() -> None:
    model = _model(other_shape=True)
    merge_native_views(model)
    assert _views(model) == 2
    assert shape_of(list(model.graph)[1].outputs[0]) == (2, 6, 8)


def test_a_view_that_says_what_a_value_is_for_is_kept() -> None:
    model = _model(kind="saved")
    merge_native_views(model)
    assert _views(model) >= 1


@pytest.mark.skipif(find_library() is None, reason="no C compiler")
def test_a_vits_step_has_fewer_of_them() -> None:
    from s2a_edge.pack.compile import native_step
    from s2a_edge.pack.options import PackOptions
    from tests.pack.compiled import LABELS, compiled

    made = compiled("tiny_vit", bits=4)
    options = PackOptions(labels=LABELS, bits=4, micro_batches=(4,), effective_batch=4)
    step = native_step(made, 4, options)
    assert step is not None
    for node in step.model.graph:
        if node.domain == "s2a.edge":
            assert not [v for v in node.inputs if v is not None and v.producer() is not None
                        and is_view(v.producer())]  # type: ignore[arg-type]  # not None, see above
