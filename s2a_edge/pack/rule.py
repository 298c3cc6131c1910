"""What a differentiation rule is, and all that it may see.

A rule has two halves. ``forward`` emits an operator's forward nodes and *declares* what the
backward will need, with :meth:`Forward.save`. ``backward`` maps the gradients of the outputs to
gradients of the inputs; it sees those gradients, static shapes, attributes, frozen or trainable
operands, and what was declared - nothing else. So the set of saved values is computed, never
assumed. Fan-out is summed by the engine (``differentiate``), not by rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.graph import dtype_of, shape_of

Gradients = Sequence[ir.Value | None]


@dataclass
class Forward:
    """The forward half's view of one node.

    Attributes:
        g: where nodes are appended.
        node: the operator in the backbone.
        inputs: its operands in the graph that is being built.
        needs: per input, whether a gradient will be asked for.
    """

    g: GraphBuilder
    node: ir.Node
    inputs: tuple[ir.Value | None, ...]
    needs: tuple[bool, ...]
    declare: Callable[[str, ir.Value, str], None] = field(repr=False)
    clone: Callable[[], tuple[ir.Value, ...]] = field(repr=False)

    def x(self, index: int = 0) -> ir.Value:
        """Operand ``index``, which must exist."""
        value = self.inputs[index]
        assert value is not None
        return value

    def save(self, key: str, value: ir.Value, kind: str) -> None:
        """Declares that the backward needs ``value``, in the form that ``kind`` names.

        It is encoded here and now, so the place of the call decides what else is alive then.
        Kinds: ``activation``, ``normalized``, ``probability``, ``derivative:<fn>`` (``value`` is
        the pre-activation, the backward gets the derivative), ``mask`` (the backward gets 1 where
        ``value`` > 0, else 0), ``mask:LOW:HIGH`` (1 strictly between), ``index``, ``exact``.
        """
        self.declare(key, value, kind)

    def emit(self) -> tuple[ir.Value, ...]:
        """Appends the operator as it is and returns its outputs."""
        return self.clone()

    def rename(self, value: ir.Value, index: int = 0) -> ir.Value:
        """Gives ``value`` the name that output ``index`` has in the backbone."""
        value.name = self.node.outputs[index].name
        return value


@dataclass
class Backward:
    """The backward half's view of one node.

    Attributes:
        g: where nodes are appended.
        node: the operator in the backbone (shapes and attributes only).
        dys: per output, its gradient, or None where nothing flows.
        needs: per input, whether a gradient is asked for.
    """

    g: GraphBuilder
    node: ir.Node
    dys: tuple[ir.Value | None, ...]
    needs: tuple[bool, ...]
    recall: Callable[[str], ir.Value] = field(repr=False)
    operand: Callable[[int], ir.Value] = field(repr=False)

    @property
    def dy(self) -> ir.Value:
        """The gradient of the only output."""
        value = self.dys[0]
        assert value is not None
        return value

    def saved(self, key: str) -> ir.Value:
        """A declared value, decoded."""
        return self.recall(key)

    def weight(self, index: int) -> ir.Value:
        """Operand ``index`` if it is a constant or a trainable: it needs no saving."""
        return self.operand(index)

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of input ``index``."""
        value = self.node.inputs[index]
        assert value is not None
        return shape_of(value)

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of output ``index``."""
        return shape_of(self.node.outputs[index])

    def constant(self, index: int) -> np.ndarray:
        """The content of constant input ``index`` (axes, shapes, indices)."""
        value = self.node.inputs[index]
        assert value is not None and value.const_value is not None
        return value.const_value.numpy()


def plain(f: Forward) -> tuple[ir.Value, ...]:
    """The forward of an operator whose backward needs nothing saved."""
    return f.emit()


def anything(node: ir.Node) -> str | None:
    """No form of the operator is refused."""
    return None


@dataclass(frozen=True)
class Rule:
    """How an operator is computed back, and what it needs saved for that.

    Attributes:
        backward: gradients of the outputs to gradients of the inputs.
        forward: emits the operator and declares what is saved.
        refuses: what of a node the rule does not cover ("mode reflect"), or None. Asked before
            anything is emitted, so that nothing is differentiated wrongly or halfway.
    """

    backward: Callable[[Backward], Gradients]
    forward: Callable[[Forward], tuple[ir.Value, ...]] = plain
    refuses: Callable[[ir.Node], str | None] = anything


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """An attribute's plain Python value, or ``default``."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return node.attributes.get_int(name, default)


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """An integer-list attribute."""
    found = node.attributes.get_ints(name)
    return list(default) if found is None else list(found)


def constant_operands(*indices: int) -> Callable[[ir.Node], str | None]:
    """Refuses a node whose operands at ``indices`` are computed."""
    def refuses(node: ir.Node) -> str | None:
        given = [node.inputs[i] for i in indices if i < len(node.inputs)]
        computed = [v.name for v in given if v is not None and v.const_value is None]
        return f"computed {computed[0]}" if computed else None

    return refuses


def extra_outputs(node: ir.Node) -> str | None:
    """Refuses a node of which more than the first output is read."""
    read = [v.name for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
    return f"output {read[0]}" if read else None


def sum_to(g: GraphBuilder, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Undoes broadcasting: sums ``value`` to ``shape``, e.g. [B, T, D] to [D]."""
    have = shape_of(value)
    if have == shape:
        return value
    lead = len(have) - len(shape)
    axes = [i for i in range(len(have))
            if i < lead or (shape[i - lead] == 1 and have[i] != 1)]
    if axes:
        value = g.op("ReduceSum", value, g.constant(axes), keepdims=0)
    return reshape(g, value, shape)


def reshape(g: GraphBuilder, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """A view of ``value`` with another static shape."""
    if shape_of(value) == tuple(shape):
        return value
    return g.op("Reshape", value, g.constant(list(shape)))


def scalar(g: GraphBuilder, number: float, like: ir.Value) -> ir.Value:
    """A scalar constant of the dtype of ``like``."""
    return g.constant(np.asarray(number, dtype_of(like).numpy()))


# A factor of a product that is this much smaller than the other one is kept exactly.
_SMALL = 16


def factor_kind(factor: ir.Value, other: ir.Value) -> str:
    """How a factor is kept: exactly where that costs next to nothing (masks, gates, weights)."""
    small = math.prod(shape_of(factor)) * _SMALL <= math.prod(shape_of(other))
    return "exact" if small else "activation"


def is_constant(value: ir.Value | None) -> bool:
    """Whether the content of a backbone value is known (a frozen initializer)."""
    return value is not None and value.const_value is not None
