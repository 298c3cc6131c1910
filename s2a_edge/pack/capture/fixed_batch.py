"""Graphs exported for one sample, opened for several.

Exporters write a batch of 1 into Reshape targets unless told otherwise. With every shape static,
the place of the batch in each value can be followed exactly: a value's row-major elements are
``outer x 1 x inner``, and a batch of n makes them ``outer x n x inner``. A Reshape keeps
``outer``; any other operator shows where the batch is by the axis that grew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.capture.static_shapes import constant_value, infer
from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.spec.errors import SourceError


@dataclass(frozen=True)
class _Place:
    """Where the batch is: in ``axis``, behind ``outer`` of that axis's elements."""

    axis: int
    outer: int = 1


def open_batch(model: ir.Model, batch: int) -> None:
    """Turns a static graph of one sample into one of ``batch`` samples, in place.

    Raises:
        SourceError: if an operator does not treat samples alike.
    """
    graph = model.graph
    single = {v: shape_of(v) for node in graph for v in node.outputs if v.name}
    places: dict[ir.Value, _Place] = {}
    for value in graph.inputs:
        value.shape = ir.Shape([batch, *shape_of(value)[1:]])
        places[value] = _Place(0)
    for node in list(graph):
        carried = [v for v in node.inputs if v is not None and v in places]
        if not carried:
            continue
        if node.op_type == "Reshape":
            _reshape(graph, node, single, places, batch)
            continue
        if node.op_type == "Concat":
            _repeat_constants(graph, node, places, batch)
        infer(node)
        for out in node.outputs:
            if out.name:
                places[out] = _grown(node, out, single[out], places[carried[0]])


def _grown(node: ir.Node, out: ir.Value, before: tuple[int, ...], operand: _Place) -> _Place:
    """The place of the batch in ``out``: the one axis that is longer than for one sample."""
    now = shape_of(out)
    axes = [a for a, (old, new) in enumerate(zip(before, now, strict=True)) if old != new]
    if len(axes) != 1:
        raise _refused(node, f"{list(before)} for one sample and {list(now)} for several")
    return _Place(axes[0], operand.outer if before[axes[0]] > 1 else 1)


def _reshape(graph: ir.Graph, node: ir.Node, single: dict[ir.Value, tuple[int, ...]],
             places: dict[ir.Value, _Place], batch: int) -> None:
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    place = places[source]
    before = list(shape_of(source))
    before[place.axis] //= batch
    target = list(single[out])
    found = _place_after(target, math.prod(before[:place.axis]) * place.outer)
    if found is None:
        raise _refused(node, f"a Reshape of {before} to {target} that splits the batch")
    target[found.axis] *= batch
    shape = constant_value(f"{out.name}_target", np.asarray(target, dtype=np.int64))
    graph.register_initializer(shape)
    node.replace_input_with(1, shape)
    infer(node)
    places[out] = found


def _place_after(dims: Sequence[int], outer: int) -> _Place | None:
    """The axis of ``dims`` behind ``outer`` elements: one of size 1 if there is one."""
    inside: _Place | None = None
    before = 1
    for axis, size in enumerate(dims):
        if before == outer and size == 1:
            return _Place(axis)
        within, rest = divmod(outer, before)
        if inside is None and rest == 0 and within <= size and size % within == 0 and (
                within < size or axis == len(dims) - 1):
            inside = _Place(axis, within)
        before *= size
    return inside


def _repeat_constants(graph: ir.Graph, node: ir.Node, places: dict[ir.Value, _Place], batch: int,
                      ) -> None:
    """A class token was concatenated once: for several samples it is expanded first."""
    axes = {places[v].axis for v in node.inputs if v is not None and v in places}
    axis = min(axes)
    joined = node.attributes.get_int("axis", 0)
    for index, value in enumerate(node.inputs):
        if value is None or value in places:
            continue
        dims = list(shape_of(value))
        if len(axes) != 1 or joined % len(dims) == axis:
            raise _refused(node, "samples joined with a constant")
        dims[axis] = batch
        shape = constant_value(f"{value.name}_expanded_shape", np.asarray(dims, dtype=np.int64))
        if str(shape.name) not in graph.initializers:
            graph.register_initializer(shape)
        expand = ir.Node("", "Expand", [value, graph.initializers[str(shape.name)]],
                         name=f"{node.name}_expand_{index}",
                         metadata_props=dict(node.metadata_props))
        expand.outputs[0].name = f"{node.outputs[0].name}_expanded_{index}"
        infer(expand)
        graph.insert_before(node, expand)
        node.replace_input_with(index, expand.outputs[0])


def _refused(node: ir.Node, got: str) -> SourceError:
    return SourceError(where=f"{node.op_type} {node.name} in {module_of(node)}",
                       expected="an operator that treats samples alike", got=got,
                       todo="export the model again with a dynamic batch axis")
