"""A training step in which every saved value can be replaced from outside.

The step is the uncompressed one. Where the backward reads a saved value there is a *tap*, an
Identity whose output a part of the graph can take as its input instead. So the effect of a code on
the gradients is measured by running only the nodes from the first use of the value on, with the
decoded value at the tap and everything else exact (see ``parts`` and ``sensitivity``).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.lower import lower
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.recompute import Recompute
from s2a_edge.pack.saving import SavedValue
from s2a_edge.spec.task_ports import Loss


@dataclass(frozen=True)
class Point:
    """One saved value of the probe.

    Attributes:
        saved: its key, module, kind, shape.
        forward: name of the value in the forward: what an encoder takes.
        exact: name of what the backward would read uncompressed: the derivative of ``forward``,
            for one, or recomputed probabilities.
        taps: names of the values that the backward reads; several where it decodes again.
    """

    saved: SavedValue
    forward: str
    exact: str
    taps: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the saved value."""
        return self.saved.key


@dataclass(frozen=True)
class Probe:
    """The step with taps, for ``batch`` samples."""

    model: ir.Model
    points: tuple[Point, ...]
    batch: int


def make_probe(adapted: Adapted, loss: Loss = "cross_entropy",
               recompute: Recompute = "none") -> Probe:
    """The probe of ``adapted``; attention probabilities are recomputed, so that q and k show."""
    seen: dict[str, tuple[ir.Value, ir.Value, list[ir.Value]]] = {}

    def tap(g: GraphBuilder, key: str, value: ir.Value, decoded: ir.Value) -> ir.Value:
        made = g.op("Identity", decoded, name="Tap")
        seen.setdefault(key, (value, decoded, []))[2].append(made)
        return made

    step = differentiate(adapted, Precision(32, "recompute"), loss, tap, recompute=recompute)
    lower(step.model)
    points = []
    for saved in step.saved:
        if saved.key in seen:
            value, decoded, taps = seen[saved.key]
            points.append(Point(saved, value.name or "", decoded.name or "",
                                tuple(tap.name or "" for tap in taps)))
    return Probe(step.model, tuple(points), shape_of(adapted.data_inputs[0])[0])
