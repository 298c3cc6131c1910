"""The pool: memory beside the arena, in which the larger values of a graph have planned places.

The runtime's arena puts every request where it fits best at that moment, and between long-lived
and short-lived tensors of a convolutional network gaps remain that nothing fits into. A graph
output is written to the memory that the caller binds, so a value that is made an output of its
graph lies where we want it, and elementwise operators may write over their operands there. Each
output takes some 2 KiB of the process, so a graph gets a pool only where that saves more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import dtype_of
from s2a_edge.pack.plan.arena import fits, rounded_peak_bytes, smallest_arena_bytes
from s2a_edge.pack.plan.buffers import Buffer, Recorder, record_traffic
from s2a_edge.pack.plan.kernel_memory import alias_source, overwritable, present_outputs
from s2a_edge.pack.plan.offsets import Interval, lay_out
from s2a_edge.pack.plan.workspaces import Runtime
from s2a_edge.spec.pool_ports import POOL_ALIGNMENT_BYTES, pool_offset, pool_port

# What an output adds to a session and its binding: 1.7 KiB were seen of 1,500 outputs
# (onnxruntime 1.32, ResNet-50).
PORT_BYTES = 2048
# Smaller values stay in the arena: this share of the live bytes, and a page at least.
_LEAST_SHARE = 1 / 500
_LEAST_BYTES = 4096
# One that lives this long splits the arena, however small it is.
_LONG_LIVED_NODES = 100
# What a pool must save, of what is needed without it and at least.
_WORTH = 0.02
_WORTH_BYTES = 2**20
# Types that the runtime's Python interface binds.
_BINDABLE = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8, ir.DataType.INT8,
    ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL,
})

_Candidate = tuple[tuple[ir.Value, ...], Buffer]
"""The values that share a buffer, and its lifetime."""


@dataclass(frozen=True)
class PooledBuffer:
    """Values that share a place, and where that is.

    Attributes:
        values: in the order in which they are written; views of them are not listed.
        offset_bytes: into the pool.
        buffer: size and lifetime.
    """

    values: tuple[ir.Value, ...]
    offset_bytes: int
    buffer: Buffer


@dataclass(frozen=True)
class PoolLayout:
    """A pool for one graph.

    Attributes:
        buffers: what lies in it.
        size_bytes: of the pool.
        arena_bytes: what the rest of the graph needs of the runtime's arena.
    """

    buffers: tuple[PooledBuffer, ...]
    size_bytes: int
    arena_bytes: int

    @property
    def total_bytes(self) -> int:
        """Pool and arena, and what the runtime takes for the outputs."""
        ports = sum(len(pooled.values) for pooled in self.buffers)
        return self.size_bytes + self.arena_bytes + PORT_BYTES * ports


class _PoolRecorder(Recorder):
    """Results of elementwise operators take over an operand's buffer as well."""

    def taken_over(self, node: ir.Node) -> int | None:
        for source in overwritable(node):
            index = self.home.get(source)
            if index is None:
                continue
            reads = sum(x is not None and self.home.get(x) == index for x in node.inputs)
            if self.buffers[index].readers == reads:
                return index
        return None


def plan_pool(model: ir.Model, runtime: Runtime) -> PoolLayout:
    """Places for the larger values of ``model``, whose outputs are bound to other memory.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    found = list(_buffers(model))
    live = rounded_peak_bytes([buffer for _, buffer in found], len(model.graph))
    least = max(int(_LEAST_SHARE * live), _LEAST_BYTES)
    chosen = [(values, buffer) for values, buffer in found
              if buffer.size_bytes >= least or (buffer.size_bytes >= _LEAST_BYTES and
                                                buffer.end - buffer.start >= _LONG_LIVED_NODES)]
    wide = _layout(model, chosen, runtime)
    narrow = _layout(model, _without_hosted(model, chosen, wide.arena_bytes, runtime), runtime)
    return min(wide, narrow, key=lambda layout: layout.total_bytes)


def _layout(model: ir.Model, chosen: Sequence[_Candidate], runtime: Runtime) -> PoolLayout:
    """The layout with exactly these buffers in the pool."""
    layout = lay_out([Interval(b.start, b.end, b.size_bytes) for _, b in chosen],
                     alignment_bytes=POOL_ALIGNMENT_BYTES)
    pooled = tuple(PooledBuffer(values, offset, buffer) for (values, buffer), offset
                   in zip(chosen, layout.offsets, strict=True))
    rest = record_traffic(model, bound_outputs=True, runtime=runtime, bound=_values(chosen))
    arena_bytes = smallest_arena_bytes(rest, rounded_peak_bytes(rest.buffers, len(rest.nodes)))
    return PoolLayout(pooled, layout.size_bytes, arena_bytes)


def _without_hosted(model: ir.Model, chosen: Sequence[_Candidate], arena_bytes: int,
                    runtime: Runtime) -> list[_Candidate]:
    """What is left of ``chosen`` when the arena takes whatever it has room for.

    The arena is as large as its largest temporaries, which few nodes take: while the pool is at
    its fullest, it stands nearly empty.
    """
    # Values that nothing was written over are buffers of their own in the arena as well.
    traffic = record_traffic(model, bound_outputs=True, runtime=runtime,
                             bound=_values([c for c in chosen if len(c[0]) > 1]))
    index = {buffer.name: number for number, buffer in enumerate(traffic.buffers)}
    pooled = {buffer.name: (values, buffer) for values, buffer in chosen}
    outside = {index[name] for name, (values, _) in pooled.items() if len(values) == 1}
    tried: set[str] = set()
    while True:
        at = _fullest([buffer for _, buffer in pooled.values()])
        alive = [b for values, b in pooled.values() if len(values) == 1 and b.name not in tried
                 and b.start <= at < b.end and b.size_bytes <= arena_bytes]
        if not alive:
            return list(pooled.values())
        largest = max(alive, key=lambda b: b.size_bytes)
        tried.add(largest.name)
        if fits(traffic.without(outside - {index[largest.name]}), arena_bytes):
            outside.remove(index[largest.name])
            del pooled[largest.name]


def _fullest(buffers: Sequence[Buffer]) -> int:
    """The step at which the most bytes of ``buffers`` are alive."""
    change = np.zeros(max((b.end for b in buffers), default=0) + 1, np.int64)
    for buffer in buffers:
        change[buffer.start] += buffer.size_bytes
        change[buffer.end] -= buffer.size_bytes
    return int(np.argmax(np.cumsum(change)))


def _values(chosen: Sequence[_Candidate]) -> set[ir.Value]:
    return {value for values, _ in chosen for value in values}


def pays(model: ir.Model, runtime: Runtime) -> bool:
    """Whether ``model`` needs clearly less memory with a pool than without."""
    traffic = record_traffic(model, bound_outputs=True, runtime=runtime)
    before = smallest_arena_bytes(traffic, rounded_peak_bytes(traffic.buffers, len(traffic.nodes)))
    least = max(int(_WORTH * before), _WORTH_BYTES)
    return before > least and plan_pool(model, runtime).total_bytes <= before - least


def use_pool(model: ir.Model, runtime: Runtime) -> None:
    """Makes the larger values of ``model`` outputs that are named by their places.

    Args:
        model: in its final order; changed in place.
        runtime: that will run it.
    """
    layout = plan_pool(model, runtime)
    values = [(value, one.offset_bytes) for one in layout.buffers for value in one.values]
    for number, (value, offset_bytes) in enumerate(values):
        value.name = pool_port(offset_bytes, number)
        model.graph.outputs.append(value)


def pooled_values(model: ir.Model) -> dict[ir.Value, int]:
    """The values of ``model`` that lie in its pool: value -> offset in bytes."""
    offsets = ((value, pool_offset(value.name or "")) for value in model.graph.outputs)
    return {value: offset for value, offset in offsets if offset is not None}


def pooled_buffers(model: ir.Model) -> tuple[Buffer, ...]:
    """Lifetimes of the places in the pool of ``model``, in the order in which they begin."""
    inside = pooled_values(model)
    return tuple(buffer for values, buffer in _buffers(model, pooled=inside)
                 if values[0] in inside)


def overwriting_buffers(model: ir.Model) -> tuple[Buffer, ...]:
    """All buffers of ``model`` but workspaces, if every value that can be had a place in a pool."""
    return tuple(buffer for _, buffer in _buffers(model, pooled=pooled_values(model)))


def _buffers(model: ir.Model, pooled: Iterable[ir.Value] = ()) -> Iterator[_Candidate]:
    """Buffers that could lie in a pool, or do, with the values that are written to each."""
    nodes = list(model.graph)
    inside = set(pooled)
    outputs = set(model.graph.outputs) - inside
    reads = Counter(v for node in nodes for v in node.inputs if v is not None)
    recorder = _PoolRecorder(reads, outputs, True, len(nodes))
    values: dict[int, list[ir.Value]] = {}
    for at, node in enumerate(nodes):
        for value in present_outputs(node):
            recorder.place(node, value, at)
            if alias_source(node) is None and value in recorder.home:
                values.setdefault(recorder.home[value], []).append(value)
        recorder.read(node, at)
    for index, buffer in enumerate(recorder.closed()):
        if index in values and all(dtype_of(v) in _BINDABLE for v in values[index]):
            yield tuple(values[index]), buffer


__all__ = ["PoolLayout", "PooledBuffer", "overwriting_buffers", "pays", "plan_pool",
           "pooled_buffers", "pooled_values", "use_pool"]
