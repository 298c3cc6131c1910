"""Activations spelled in small operators become one operator.

A closed region of elementwise operators with one input is a function of one number. It is
recognised by its values on a grid, not by how it is spelled: exporters order the factors of GELU
in many ways, and its values are the same in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT
from s2a_edge.pack.normalize.rewrite import insert, replace, scalar_of

_ANCHORS = frozenset({"Erf", "Tanh", "HardSigmoid", "Clip", "Relu", "Sigmoid"})
_MAX_REGION = 16  # nodes; GELU by tanh takes 8 to 10
_GRID = np.concatenate([np.linspace(-8.0, 8.0, 161), np.asarray([-40.0, -20.0, 20.0, 40.0])])
_TOLERANCE = 2e-5  # float32 constants such as 1.4142135 and 0.044715, times 40 on the grid

Function = Callable[..., np.ndarray]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _mish(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * np.tanh(np.logaddexp(0.0, x)))


@dataclass(frozen=True)
class _Target:
    """An operator, and the function of one number that it computes."""

    op_type: str
    attributes: Mapping[str, object]
    function: Callable[[np.ndarray], np.ndarray]
    domain: str = ""


# SiLU is QuickGelu of alpha 1: ONNX has an operator for it only from opset 24 on.
_TARGETS = (
    _Target("Gelu", {"approximate": "none"}, _gelu),
    _Target("Gelu", {"approximate": "tanh"}, _gelu_tanh),
    _Target("HardSwish", {}, _hard_swish),
    _Target("QuickGelu", {"alpha": 1.0}, lambda x: x * _sigmoid(x), MICROSOFT),
    _Target("QuickGelu", {"alpha": 1.702}, lambda x: x * _sigmoid(1.702 * x), MICROSOFT),
    _Target("Mish", {}, _mish),
)
# Parts of the above: looked for when those are found.
_PARTS = (
    _Target("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
)


def fuse_activations(graph: ir.Graph) -> None:
    """Regions that compute GELU (erf and tanh forms), SiLU, hard-swish, ... -> one operator."""
    for targets in (_TARGETS, _PARTS):
        for node in list(graph):
            if node.graph is None or node.op_type not in _ANCHORS:
                continue
            found = _recognise(node, targets)
            if found is not None:
                x, last, target = found
                new = insert(graph, last, target.op_type, [x], dict(target.attributes),
                             domain=target.domain, name=f"{last.outputs[0].name}_fused")
                replace(graph, last.outputs[0], new)


def _recognise(anchor: ir.Node, targets: tuple[_Target, ...],
               ) -> tuple[ir.Value, ir.Node, _Target] | None:
    """Input, last node and target of a known region around ``anchor``."""
    for x in _around(anchor, lambda n: n.inputs):
        for y in (anchor.outputs[0], *_around(anchor, _read_results)):
            region = _region(x, y, anchor)
            if region is None or len(region) < 2:
                continue
            values = _evaluate(x, region)
            for target in targets:
                if np.allclose(values, target.function(_GRID), rtol=_TOLERANCE, atol=_TOLERANCE):
                    return x, region[-1], target
    return None


def _around(anchor: ir.Node, step: Callable[[ir.Node], Iterable[ir.Value | None]],
            ) -> list[ir.Value]:
    """Computed values reached from ``anchor`` through elementwise nodes, nearest first."""
    found: list[ir.Value] = []
    frontier = [anchor]
    while frontier and len(found) < _MAX_REGION:
        for value in step(frontier.pop(0)):
            if value is None or value.const_value is not None or value in found:
                continue
            found.append(value)
            node = value.producer()
            if node is not None and node.op_type in _NUMPY:
                frontier.append(node)
    return found


def _read_results(node: ir.Node) -> list[ir.Value]:
    """Outputs of the elementwise nodes that read the output of ``node``."""
    return [use.node.outputs[0] for use in node.outputs[0].uses() if use.node.op_type in _NUMPY]


def _region(x: ir.Value, y: ir.Value, anchor: ir.Node) -> list[ir.Node] | None:
    """The nodes between ``x`` and ``y`` in topological order, if they are a function of x alone.

    None if another computed value enters, an inner value is read outside, or ``anchor`` is not
    among them.
    """
    order: list[ir.Node] = []

    def visit(value: ir.Value) -> bool:
        node = value.producer()
        if value is x or node in order:
            return True
        if node is None or node.op_type not in _NUMPY or len(order) >= _MAX_REGION:
            return False
        inner = [v for v in node.inputs if v is not None and scalar_of(v) is None]
        if not all(visit(v) for v in inner):
            return False
        order.append(node)
        return True

    if not visit(y) or anchor not in order or len(order) > _MAX_REGION:
        return None
    leaks = any(node.outputs[0].is_graph_output()
                or any(use.node not in order for use in node.outputs[0].uses())
                for node in order if node.outputs[0] is not y)
    return None if leaks else order


def _evaluate(x: ir.Value, region: list[ir.Node]) -> np.ndarray:
    """The region's output on the grid."""
    values: dict[ir.Value, np.ndarray] = {x: _GRID}
    for node in region:
        arguments = [None if v is None else values.get(v, np.float64(scalar_of(v) or 0.0))
                     for v in node.inputs]
        attributes = {k: a.value for k, a in node.attributes.items()}
        with np.errstate(all="ignore"):
            values[node.outputs[0]] = np.asarray(_NUMPY[node.op_type](*arguments, **attributes))
    return values[region[-1].outputs[0]]


def _clip(x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None,
          ) -> np.ndarray:
    return np.asarray(np.clip(x, -np.inf if low is None else low,
                              np.inf if high is None else high))


def _hard_sigmoid(x: np.ndarray, alpha: float = 0.2, beta: float = 0.5) -> np.ndarray:
    return np.clip(alpha * x + beta, 0, 1)


_NUMPY: dict[str, Function] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
    "Neg": np.negative, "Erf": _erf, "Tanh": np.tanh, "Clip": _clip,
    "Relu": lambda x: np.maximum(x, 0), "HardSigmoid": _hard_sigmoid, "Exp": np.exp,
    "Sigmoid": _sigmoid, "Softplus": lambda x: np.logaddexp(0.0, x),
}
