"""From an ONNX graph to the buffers that ONNX Runtime allocates for it, node by node.

What is modelled is the runtime with memory reuse and patterns off, running nodes in file order: a
value is allocated when its node runs and released after its last reader; views share a buffer; a
few operators write over their operand. Graph inputs, weights and bound outputs live elsewhere. An
output that nobody reads stays until the run ends: the runtime has no step that would release it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from s2a_edge.pack.graph import KIND_KEY, nbytes_of
from s2a_edge.pack.plan.kernel_memory import (
    alias_source,
    counted_initializer_bytes,
    in_place_source,
    present_outputs,
)
from s2a_edge.pack.plan.workspaces import Runtime, workspaces_of
from s2a_edge.spec.memory_plan import MemoryKind

# A buffer that several values share is counted as the first of these that one of them is.
_PRECEDENCE = (MemoryKind.SAVED, MemoryKind.GRADIENTS, MemoryKind.INPUTS, MemoryKind.WORKING,
               MemoryKind.CONSTANTS)


@dataclass(frozen=True)
class Buffer:
    """One allocation of the arena, alive in the nodes [start, end).

    Attributes:
        name: the value that is first in it, or its node's name and ``workspace``.
        size_bytes: as requested, before the arena rounds it.
        kind: what it is for.
        start: index of the node that allocates it.
        end: index after the last node that reads it; the number of nodes if none does.
    """

    name: str
    size_bytes: int
    kind: MemoryKind
    start: int
    end: int


@dataclass(frozen=True)
class NodeTraffic:
    """Indices of the buffers that a node allocates, in order, and releases when it is done."""

    name: str
    op_type: str
    allocated: tuple[int, ...]
    released: tuple[int, ...]


@dataclass(frozen=True)
class Traffic:
    """All that a run of a graph asks of the arena.

    Attributes:
        counted_bytes: small inline constants, which count against the arena's limit.
    """

    buffers: tuple[Buffer, ...]
    nodes: tuple[NodeTraffic, ...]
    counted_bytes: int

    def without(self, numbers: Container[int]) -> Traffic:
        """The same but for the buffers of these numbers, which lie elsewhere."""
        nodes = (replace(node, allocated=tuple(n for n in node.allocated if n not in numbers),
                         released=tuple(n for n in node.released if n not in numbers))
                 for node in self.nodes)
        return replace(self, nodes=tuple(nodes))


@dataclass
class _Open:
    """A buffer under construction; ``readers`` counts the reads that are still to come."""

    name: str
    size_bytes: int
    kinds: set[MemoryKind]
    start: int
    readers: int
    end: int


@dataclass
class Recorder:
    """Walks the nodes once.

    Attributes:
        reads: how often each value is read.
        outputs: of the graph.
        bound_outputs: the caller provides their memory.
        node_count: nodes of the graph.
        buffers: found until now.
        home: value -> index of its buffer, if that is in the arena.
    """

    reads: Counter[ir.Value]
    outputs: set[ir.Value]
    bound_outputs: bool
    node_count: int
    buffers: list[_Open] = field(default_factory=list)
    home: dict[ir.Value, int] = field(default_factory=dict)

    def take(self, name: str, size_bytes: int, kind: MemoryKind, at: int, readers: int) -> int:
        """Opens a buffer; returns its index."""
        self.buffers.append(_Open(name, size_bytes, {kind}, at, readers, self.node_count))
        return len(self.buffers) - 1

    def place(self, node: ir.Node, value: ir.Value, at: int) -> int | None:
        """Finds a home for an output; returns the buffer's index if it is a new one."""
        if value in self.outputs:  # never shared: the caller gets memory of its own
            if self.bound_outputs:
                return None
        elif (view := alias_source(node)) is not None:
            if view in self.home:
                self.share(value, self.home[view])
            return None
        elif (taken := self.taken_over(node)) is not None:
            self.share(value, taken)
            return None
        index = self.take(value.name or "", nbytes_of(value), kind_of(value), at,
                          self.reads[value])
        self.home[value] = index
        return index

    def taken_over(self, node: ir.Node) -> int | None:
        """The buffer of an operand that the only result of ``node`` is written over."""
        index = self.home.get(source) if (source := in_place_source(node)) is not None else None
        return index if index is not None and self.buffers[index].readers == 1 else None

    def share(self, value: ir.Value, index: int) -> None:
        """Lets a value lie in a buffer that is there."""
        self.home[value] = index
        self.buffers[index].readers += self.reads[value]
        self.buffers[index].kinds.add(kind_of(value))

    def read(self, node: ir.Node, at: int) -> list[int]:
        """Counts the node's reads; returns the buffers that nobody reads after it."""
        released = []
        for value in node.inputs:
            index = self.home.get(value) if value is not None else None
            if index is None:
                continue
            buffer = self.buffers[index]
            buffer.readers -= 1
            if buffer.readers == 0:
                buffer.end = at + 1
                released.append(index)
        return released

    def closed(self) -> tuple[Buffer, ...]:
        """All buffers, in the order in which they were allocated."""
        return tuple(map(_close, self.buffers))


def kind_of(value: ir.Value) -> MemoryKind:
    """What a value is for, as its producer marked it; working memory if nobody did."""
    return MemoryKind(value.metadata_props.get(KIND_KEY, MemoryKind.WORKING.value))


def record_traffic(model: ir.Model, *, bound_outputs: bool, runtime: Runtime,
                   bound: Iterable[ir.Value] = ()) -> Traffic:
    """The allocations and releases of one run of ``model``, nodes in the order they have.

    Args:
        model: static shapes everywhere.
        bound_outputs: the caller provides the memory of graph outputs; else they are allocated
            and stay.
        runtime: whose kernels take workspaces.
        bound: values to be treated as bound outputs too.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    nodes = list(model.graph)
    reads = Counter(v for node in nodes for v in node.inputs if v is not None)
    outputs = {*model.graph.outputs, *bound}
    for value in outputs:
        reads[value] += 1  # the caller reads it when the run is over
    recorder = Recorder(reads, outputs, bound_outputs, len(nodes))
    traffic = tuple(_run(recorder, node, at, runtime) for at, node in enumerate(nodes))
    return Traffic(recorder.closed(), traffic, counted_initializer_bytes(model))


def _run(recorder: Recorder, node: ir.Node, at: int, runtime: Runtime) -> NodeTraffic:
    workspaces = workspaces_of(node, runtime)
    before = [_workspace(recorder, node, at, size) for size in workspaces.before_bytes]
    placed = [recorder.place(node, value, at) for value in present_outputs(node)]
    after = [_workspace(recorder, node, at, size) for size in workspaces.after_bytes]
    allocated = [*before, *(i for i in placed if i is not None), *after]
    return NodeTraffic(node.name or "", node.op_type, tuple(allocated),
                       tuple([*before, *after, *recorder.read(node, at)]))


def _workspace(recorder: Recorder, node: ir.Node, at: int, size_bytes: int) -> int:
    index = recorder.take(f"{node.name} workspace", size_bytes, MemoryKind.WORKING, at, 0)
    recorder.buffers[index].end = at + 1
    return index


def _close(buffer: _Open) -> Buffer:
    kind = next(k for k in _PRECEDENCE if k in buffer.kinds)
    return Buffer(buffer.name, buffer.size_bytes, kind, buffer.start, buffer.end)
