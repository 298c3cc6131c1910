"""What a graph asks of the arena in any order of its nodes: ``buffers`` for a search.

A search over orders plans thousands of them. So all that does not depend on the order (sizes,
views, workspaces) is looked up once, and the arena is simulated as one region. ``buffers`` and
``arena`` remain the reference; the tests compare.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.graph import nbytes_of
from s2a_edge.pack.plan.arena import DEAD_BYTES, round_up
from s2a_edge.pack.plan.kernel_memory import (
    alias_source,
    in_place_source,
    overwritable,
    present_outputs,
)
from s2a_edge.pack.plan.workspaces import Runtime, workspaces_of

Request = tuple[int, int]
"""(buffer, rounded bytes) where a buffer is allocated, (buffer, 0) where it is released."""


@dataclass(frozen=True)
class Requests:
    """The traffic of one order.

    Attributes:
        items: allocations and releases; empty tensors have none.
        ends: for each node, in this order, how many items there are up to its end.
        peak_bytes: most rounded bytes alive at once.
    """

    items: list[Request]
    ends: list[int]
    peak_bytes: int


@dataclass(frozen=True)
class _Output:
    """A result, the operands one of whose buffers it takes over if it can, or must as a view."""

    value: int
    sources: tuple[int, ...]
    view: bool


class Orders:
    """The nodes of a graph, to be put into orders; graph outputs are bound to other memory.

    Args:
        nodes: in a valid order.
        outputs: of the graph.
        runtime: whose kernels take workspaces.
        pooled: values will lie in a pool, where elementwise results go over their operands.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """

    def __init__(self, nodes: Sequence[ir.Node], outputs: Iterable[ir.Value], runtime: Runtime, *,
                 pooled: bool = False) -> None:
        self._pooled = pooled
        self._bound = set(outputs)
        self._numbers: dict[ir.Value, int] = {}
        self._sizes: list[int] = []
        self._before: list[list[int]] = []
        self._after: list[list[int]] = []
        self._results: list[list[_Output]] = []
        self._operands: list[list[int]] = []
        for node in nodes:
            spaces = workspaces_of(node, runtime)
            self._before.append([round_up(s) for s in spaces.before_bytes])
            self._after.append([round_up(s) for s in spaces.after_bytes])
            self._operands.append([self._numbers[v] for v in node.inputs if v in self._numbers])
            self._results.append([self._output(node, v) for v in present_outputs(node)
                                  if v not in self._bound])
        self._reads = [0] * len(self._sizes)
        for operands in self._operands:
            for value in operands:
                self._reads[value] += 1

    def _output(self, node: ir.Node, value: ir.Value) -> _Output:
        view = alias_source(node)
        sources: tuple[ir.Value | None, ...] = (view,)
        if view is None:
            sources = overwritable(node) if self._pooled else (in_place_source(node),)
        numbers = tuple(self._numbers[s] for s in sources if s in self._numbers)
        self._numbers[value] = len(self._sizes)
        self._sizes.append(round_up(nbytes_of(value)))
        return _Output(self._numbers[value], numbers, view is not None)

    def requests(self, order: Iterable[int]) -> Requests:
        """The traffic of the nodes in ``order``, given by their numbers."""
        home: dict[int, int] = {}
        sizes: list[int] = []
        left: list[int] = []
        items: list[Request] = []
        ends: list[int] = []
        live = peak = 0
        for node in order:
            fresh = [*((s, 0, -1) for s in self._before[node])]
            for out in self._results[node]:
                reads = self._reads[out.value]
                taken = self._taken(out, self._operands[node], home, left)
                if taken is not None:
                    home[out.value] = taken
                    left[taken] += reads
                elif not out.view:
                    fresh.append((self._sizes[out.value], reads, out.value))
            fresh += [(s, 0, -1) for s in self._after[node]]
            released = []
            for size, reads, value in fresh:
                if value >= 0:
                    home[value] = len(sizes)
                else:
                    released.append(len(sizes))
                if size:
                    items.append((len(sizes), size))
                    live += size
                sizes.append(size)
                left.append(reads)
            peak = max(peak, live)
            for value in self._operands[node]:
                buffer = home.get(value)
                if buffer is not None:
                    left[buffer] -= 1
                    if left[buffer] == 0:
                        released.append(buffer)
            for buffer in released:
                if sizes[buffer]:
                    items.append((buffer, 0))
                    live -= sizes[buffer]
            ends.append(len(items))
        return Requests(items, ends, peak)

    def _taken(self, out: _Output, operands: Sequence[int], home: Mapping[int, int],
               left: Sequence[int]) -> int | None:
        """The buffer of an operand that ``out`` is to lie in."""
        for source in out.sources:
            buffer = home.get(source)
            if buffer is None:
                continue
            reads = sum(home.get(x) == buffer for x in operands) if self._pooled else 1
            if out.view or left[buffer] == reads:
                return buffer
        return None


def fits_region(items: Iterable[Request], region_bytes: int) -> bool:
    """Whether an arena of one region serves all requests (see ``arena`` for its rules)."""
    free = [(region_bytes, 0)]  # (size, start), sorted
    size_at, start_of = {0: region_bytes}, {region_bytes: 0}  # free chunks by start and by end
    used: dict[int, tuple[int, int]] = {}
    for buffer, wanted in items:
        if wanted:
            index = bisect_left(free, (wanted, -1))
            if index == len(free):
                return False
            size, start = free.pop(index)
            del size_at[start], start_of[start + size]
            if size >= 2 * wanted or size - wanted >= DEAD_BYTES:
                rest = start + wanted
                size_at[rest], start_of[start + size] = size - wanted, rest
                insort(free, (size - wanted, rest))
                size = wanted
            used[buffer] = (start, size)
            continue
        start, size = used.pop(buffer)
        end = start + size
        if end in size_at:
            following = size_at.pop(end)
            del free[bisect_left(free, (following, end))]
            end += following
        if start in start_of:
            before = start_of.pop(start)
            del free[bisect_left(free, (size_at.pop(before), before))]
            start = before
        else:
            before = start
        size_at[start], start_of[end] = end - start, start
        insort(free, (end - start, start))
    return True


def parents_of(nodes: Sequence[ir.Node]) -> list[set[int]]:
    """For each node the numbers of those that it reads from."""
    made: dict[ir.Value, int] = {}
    found: defaultdict[int, set[int]] = defaultdict(set)
    for number, node in enumerate(nodes):
        found[number].update(made[v] for v in node.inputs if v in made)
        made.update((v, number) for v in node.outputs)
    return [found[number] for number in range(len(nodes))]


__all__ = ["Orders", "Requests", "fits_region", "parents_of"]
