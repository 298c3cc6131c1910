"""The wide front of a network runs on a few samples at a time.

The largest values of a convolutional network are its first ones: in a ResNet-50 three tensors
[N, 256, 56, 56] make the peak, and all that is saved takes a seventh of it. So the graph is cut at
a value that everything passes and that is small. Up to there every part of the micro-batch runs by
itself, forward and backward; behind it the parts are joined. What the front needs at once is then
a part's, while the rest still reads each weight once for the whole micro-batch. Gradients of the
parts meet in the trainables, where the engine adds them up.

The parts are copies of the graph for fewer samples, so no operator's attributes have to be
understood: only whether both graphs are the same, node for node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.copies import copy_initializer, copy_node
from s2a_edge.pack.graph import (
    CONSTANT_KEY,
    MODULE_KEY,
    SAMPLES_KEY,
    dtype_of,
    leading_to,
    module_of,
    shape_of,
)


@dataclass(frozen=True)
class Cut:
    """A value that everything from the input to the logits passes.

    Attributes:
        value: of the graph for the whole micro-batch, [N, ...].
        nodes: how many of the nodes that depend on the input come before it.
    """

    value: ir.Value
    nodes: int


def find_cuts(whole: Adapted, part: Adapted) -> tuple[Cut, ...]:
    """Where ``whole`` can be cut if ``part`` is the same network for fewer samples.

    Empty if the two differ in more than the number of samples, or have several inputs.
    """
    if len(whole.data_inputs) != 1 or shape_of(whole.logits)[:1] != shape_of(
            whole.data_inputs[0])[:1]:
        return ()
    nodes, fewer = dependents(whole), dependents(part)
    if [(n.domain, n.op_type, len(n.outputs)) for n in nodes] != [
            (n.domain, n.op_type, len(n.outputs)) for n in fewer]:
        return ()
    shared = _counterparts(whole, part)
    if any(v.const_value is None and v not in shared for v in _given(part).values()):
        return ()  # computed from trainables for each sample
    samples, each = (shape_of(a.data_inputs[0])[0] for a in (whole, part))
    return tuple(
        Cut(value, at + 1) for at, value in _passed(nodes, whole)
        if dtype_of(value) is ir.DataType.FLOAT and shape_of(value)[:1] == (samples,)
        and shape_of(fewer[at].outputs[0]) == (each, *shape_of(value)[1:]))


def dependents(adapted: Adapted) -> list[ir.Node]:
    """The nodes whose values depend on the samples, in order."""
    reached = set(adapted.data_inputs)
    found = []
    for node in adapted.nodes:
        if any(v in reached for v in node.inputs):
            reached.update(node.outputs)
            found.append(node)
    return found


def _passed(nodes: Sequence[ir.Node], adapted: Adapted) -> list[tuple[int, ir.Value]]:
    """(index of its node, value) wherever only that value is still to be read."""
    made = {*adapted.data_inputs, *(v for node in nodes for v in node.outputs)}
    reads: dict[ir.Value, int] = {adapted.logits: 1}
    for node in nodes:
        for value in node.inputs:
            if value in made and value is not None:
                reads[value] = reads.get(value, 0) + 1
    waiting = set(adapted.data_inputs)
    found = []
    for at, node in enumerate(nodes):
        for value in node.inputs:
            if value in made and value is not None:
                reads[value] -= 1
                if reads[value] == 0:
                    waiting.discard(value)
        waiting.update(v for v in node.outputs if reads.get(v))
        if waiting == {node.outputs[0]}:
            found.append((at, node.outputs[0]))
    return found


def split_images(whole: Adapted, part: Adapted, cut: Cut) -> Adapted:
    """``whole`` with everything up to ``cut`` in parts of as many samples as ``part`` takes.

    The same function of the same trainables, up to the order of sums over samples.
    """
    x, small = whole.data_inputs[0], part.data_inputs[0]
    each = shape_of(small)[0]
    count = shape_of(x)[0] // each
    front = set(dependents(whole)[:cut.nodes])
    own = {v for node in front for v in node.inputs if v is not None}
    given = leading_to(whole.nodes, own) - front
    copies = _Copies(GraphBuilder(taken=whole.names))
    for node in whole.nodes:
        if node in given:  # what does not depend on the samples is computed once
            copies.add(node)
    samples = copies.g.multi("Split", [x, copies.g.constant([each] * count)], count, axis=0)
    fewer = dependents(part)[:cut.nodes]
    shared = {v: copies.now(o) for v, o in _counterparts(whole, part).items()}
    ends = []
    for number, value in enumerate(samples):
        copies.start_part(number, shared | {small: value})
        for node in fewer:
            copies.add(node)
        ends.append(copies.now(fewer[-1].outputs[0]))
    copies.end_parts()
    copies.bind(cut.value, copies.g.op("Concat", *ends, axis=0))
    for node in whole.nodes:
        if node not in front and node not in given:
            copies.add(node)
    return replace(whole, nodes=tuple(copies.g.nodes), logits=copies.now(whole.logits),
                   names=frozenset(copies.g.taken))


def _counterparts(whole: Adapted, part: Adapted) -> dict[ir.Value, ir.Value]:
    """Values of ``part`` that do not depend on the samples -> those of ``whole`` of that name."""
    ours, theirs = _given(whole), _given(part)
    return {v: ours[name] for name, v in theirs.items() if name in ours and _same(v, ours[name])}


def _given(adapted: Adapted) -> dict[str, ir.Value]:
    """What does not depend on the samples, by name: trainables, weights, constants and sums."""
    depending = {v for node in dependents(adapted) for v in node.outputs}
    depending.update(adapted.data_inputs)
    return {v.name: v for node in adapted.nodes for v in node.inputs
            if v is not None and v.name and v not in depending}


def _same(first: ir.Value, second: ir.Value) -> bool:
    """Constants of a graph (shapes, class tokens for all samples) may have one name and differ."""
    if shape_of(first) != shape_of(second):
        return False
    if CONSTANT_KEY not in first.metadata_props:
        return True
    one, other = first.const_value, second.const_value
    return one is not None and other is not None and np.array_equal(one.numpy(), other.numpy())


class _Copies:
    """Copies of nodes on other operands; those of a part under new names."""

    def __init__(self, g: GraphBuilder) -> None:
        self.g = g
        self._whole: dict[ir.Value, ir.Value] = {}
        self._part: dict[ir.Value, ir.Value] | None = None
        self._own: dict[ir.Value, ir.Value] = {}  # constants of the parts, under new names
        self._number = 0

    def start_part(self, number: int, given: Mapping[ir.Value, ir.Value]) -> None:
        self._number, self._part = number, dict(given)

    def end_parts(self) -> None:
        self._part = None

    def bind(self, value: ir.Value, made: ir.Value) -> None:
        self._whole[value] = made

    def now(self, value: ir.Value) -> ir.Value:
        """What stands for ``value``; inputs and initializers stand for themselves."""
        if self._part is None:
            return self._whole.get(value, value)
        if value in self._part:
            return self._part[value]
        if value not in self._own:
            assert value.const_value is not None, f"{value.name} is used before it is made"
            self._own[value] = copy_initializer(value, self._part_name(str(value.name)))
        return self._own[value]

    def add(self, node: ir.Node) -> None:
        part = self._part
        copy = copy_node(node, [None if v is None else self.now(v) for v in node.inputs],
                         rename=None if part is None else self._part_name)
        copy.metadata_props[MODULE_KEY] = module_of(node)
        if part is not None:
            copy.metadata_props[SAMPLES_KEY] = str(self._number)
        (self._whole if part is None else part).update(
            zip(node.outputs, copy.outputs, strict=True))
        self.g.adopt(copy)

    def _part_name(self, name: str) -> str:
        return self.g.unique(f"{name}_part")


__all__ = ["Cut", "dependents", "find_cuts", "split_images"]
