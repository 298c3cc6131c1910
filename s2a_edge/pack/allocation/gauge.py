"""Measures what codes do to the gradients.

For one batch the whole step runs once, exactly. From then on a measurement runs only the part of
the backward that begins where the changed values are first read: decoded values are put at their
taps, all else is exact. Most of a step's time is thus spared: the forward always, and of the
backward what lies above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from s2a_edge.pack.allocation.parts import Part, Parts, open_session
from s2a_edge.pack.allocation.probe import Point, Probe
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.codecs import Codec

Doubles = NDArray[np.float64]
_GRADIENT = "acc_out."
# Parts of the backward that are made: a measurement begins at the last one that is early enough.
_STARTS = 16


class Gauge:
    """Gradient errors of one probe.

    Args:
        probe: the step with taps.
        folder: an empty folder; needed as long as this lives.
        threads: of one operator.
        wholes: models that hold the weights of which the step has slices.
    """

    def __init__(self, probe: Probe, folder: Path, threads: int,
                 wholes: Sequence[ir.Model] = ()) -> None:
        self.points: dict[str, Point] = {p.key: p for p in probe.points}
        self._parts = Parts(probe.model, folder, threads, wholes)
        self._threads = threads
        taps = {name: p.key for p in probe.points for name in p.taps}
        self._taps = taps
        self._first = {p.key: self._parts.first_use(p.taps) for p in probe.points}
        self._starts = _spread(sorted(set(self._first.values())), _STARTS)
        gradients = [v.name or "" for v in probe.model.graph.outputs
                     if (v.name or "").startswith(_GRADIENT)]
        self.trainables = tuple(name.removeprefix(_GRADIENT) for name in gradients)
        self._backward = {at: self._parts.part(self._parts.made_from(gradients, at), start=at,
                                               given=taps) for at in self._starts}
        self.leaves = {p.key: self._leaves(p) for p in probe.points if p.exact != p.forward}
        self._again = {key: self._parts.part([self.points[key].exact], given=taps)
                       for key, leaves in self.leaves.items() if leaves}
        self._incoming = {p.key: other for p in probe.points if len(p.taps) == 1
                          and (other := self._parts.factor(p.taps[0])) is not None
                          and p.saved.kind.startswith("derivative:")}
        self._whole = self._parts.part(self._to_keep(gradients))
        self._codecs: dict[tuple[Codec, tuple[int, ...]], Any] = {}
        self._values: dict[str, ort.OrtValue] = {}
        self._exact: dict[str, NDArray[np.float32]] = {}

    @property
    def starts(self) -> tuple[int, ...]:
        """Positions in the step at which measurements begin."""
        return tuple(self._starts)

    def exact(self, key: str) -> ort.OrtValue:
        """What the backward reads of the value ``key`` uncompressed, in the present batch."""
        return self._values[self.points[key].exact]

    def forward(self, key: str) -> ort.OrtValue:
        """What an encoder of the value ``key`` takes, in the present batch."""
        return self._values[self.points[key].forward]

    def incoming(self, key: str) -> ort.OrtValue | None:
        """The gradient that the value ``key`` is multiplied with, where it is used so once."""
        name = self._incoming.get(key)
        return None if name is None else self._values[name]

    def _leaves(self, point: Point) -> tuple[str, ...]:
        """Keys of the values that ``point`` is recomputed from."""
        part = self._parts.reach([point.exact], given=self._taps)
        return tuple(dict.fromkeys(self._taps[name] for name in part if name in self._taps))

    def _to_keep(self, gradients: Iterable[str]) -> list[str]:
        names = dict.fromkeys(gradients)
        for part in (*self._backward.values(), *self._again.values()):
            names.update(dict.fromkeys(n for n in part.inputs if n not in self._taps))
        names.update(dict.fromkeys(self._incoming.values()))
        for point in self.points.values():
            names.update(dict.fromkeys((point.forward, point.exact)))
        return [name for name in names if self._parts.is_made(name)]

    def begin(self, feeds: Mapping[str, NDArray[Any]]) -> Doubles:
        """Runs the whole step on one batch.

        Returns:
            Squared norms of the exact gradients, one for each trainable.
        """
        given = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
                 for name, array in feeds.items()}
        self._values = {**given, **self._whole.run(given)}
        for tap, key in self._taps.items():
            self._values[tap] = self._values[self.points[key].exact]
        self._exact = {t: self._values[_GRADIENT + t].numpy() for t in self.trainables}
        return np.array([_square(self._exact[t]) for t in self.trainables])

    def decoded(self, key: str, codec: Codec) -> ort.OrtValue:
        """What the backward reads of the value ``key`` when ``codec`` keeps it."""
        point = self.points[key]
        shape = point.saved.shape
        if (codec, shape) not in self._codecs:
            self._codecs[codec, shape] = _codec_session(codec, shape, self._threads)
        session = self._codecs[codec, shape]
        made: ort.OrtValue = session.run_with_ort_values(
            None, {"x": self._values[point.forward]})[0]
        return made

    def again(self, key: str, changed: Mapping[str, ort.OrtValue]) -> ort.OrtValue:
        """The recomputed value ``key`` when the values it comes from are ``changed``."""
        part = self._again[key]
        return part.run({**self._values, **self._at_taps(changed)})[part.outputs[0]]

    def _at_taps(self, changed: Mapping[str, ort.OrtValue]) -> dict[str, ort.OrtValue]:
        return {tap: value for key, value in changed.items() for tap in self.points[key].taps}

    def error(self, changed: Mapping[str, ort.OrtValue]) -> Doubles:
        """Squared norms of the gradients' errors with ``changed`` values, for each trainable."""
        first = min(self._first[key] for key in changed)
        part = self._backward[max(at for at in self._starts if at <= first)]
        made = part.run({**self._values, **self._at_taps(changed)})
        return np.array([_square(made[_GRADIENT + t].numpy() - self._exact[t])
                         if _GRADIENT + t in made else 0.0 for t in self.trainables])


def _square(array: NDArray[np.float32]) -> float:
    flat = array.reshape(-1).astype(np.float64)
    return float(flat @ flat)


def _spread(positions: list[int], count: int) -> list[int]:
    """At most ``count`` of ``positions``, evenly, the first among them."""
    if len(positions) <= count:
        return positions
    return [positions[at * len(positions) // count] for at in range(count)]


def _codec_session(codec: Codec, shape: tuple[int, ...], threads: int) -> Any:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, shape)
    out = g.op("Identity", codec.decode(g, codec.encode(g, x), shape))
    model = model_of([x], [out], g, "codec")
    return open_session(ir.to_proto(model).SerializeToString(), threads)


__all__ = ["Doubles", "Gauge", "Part"]
