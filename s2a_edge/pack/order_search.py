"""A local search for an order of execution in which the arena fragments little.

The runtime's arena places each request by the sizes of its free chunks (``plan.arena``), so how
much it needs beyond the bytes that are alive depends on the order of requests: a mask of 100 KiB
that falls between two tensors of 10 MiB keeps both places apart until the backward reads it. No
rule on the graph says which order is good, but the simulator tells of any one in milliseconds. So
stretches of the order are shuffled a little, and what needs a smaller arena is kept. Values are
computed as before, by the same nodes from the same operands: results are the same bit for bit.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import onnx_ir as ir

from s2a_edge.pack.plan.arena import round_up, smallest_arena_bytes
from s2a_edge.pack.plan.buffers import record_traffic
from s2a_edge.pack.plan.offsets import Interval, quick_size_bytes
from s2a_edge.pack.plan.orders import Orders, Requests, fits_region, parents_of
from s2a_edge.pack.plan.pool import plan_pool
from s2a_edge.pack.plan.workspaces import Runtime

# Arena over live bytes at which an order is good enough.
GOOD_RATIO = 1.03
# Nodes simulated in one search, orders times nodes: some seconds.
_EFFORT_NODES = 2_000_000
_MOST_ORDERS = 2500
# What an order could save at most must be worth the time.
_WORTH_BYTES = 512 * 1024
# The least gain that counts, of the live bytes.
_STEP = 0.005
# How far nodes move, and which part of the order is shuffled at a time.
_REACHES = (2, 4, 8, 16, 32)
_STRETCHES = (16, 6, 2, 1)
# An arena a little larger must work too (as in ``arena``, which takes more samples).
_LARGER = (1.0, 1.005, 1.01, 1.015, 1.02)
_ONE_REGION_BYTES = 2**31
# Orders tried for a pool, and the smallest buffers that are laid out for each of them.
_POOL_TRIES = 400
_POOLED_SHARE = 1 / 100


def search_order(model: ir.Model, runtime: Runtime, *, effort: int = _EFFORT_NODES,
                 worth_bytes: int = _WORTH_BYTES, most_orders: int = _MOST_ORDERS,
                 good_ratio: float = GOOD_RATIO) -> None:
    """Reorders ``model`` in place if the arena that it needs is found to shrink by that.

    Neither the arena nor the most bytes alive at once grow. The result is the same in every run.

    Args:
        model: static shapes; its outputs are bound to other memory.
        runtime: that will run it.
        effort: orders that are tried, times nodes.
        worth_bytes: nothing is tried where less could be won.
        most_orders: that are tried.
        good_ratio: arena over live bytes at which the search ends.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    nodes = list(model.graph)
    if len(nodes) < 2:
        return
    search = _Search(nodes, model.graph.outputs, runtime)
    if (search.region_bytes > _ONE_REGION_BYTES // 2
            or search.region_bytes - search.peak_bytes < worth_bytes
            or not search.run(min(effort // len(nodes), most_orders), good_ratio)):
        return
    before = _arena_bytes(model, search.first.peak_bytes, runtime)
    _rearrange(model, [nodes[n] for n in search.order()])
    if _arena_bytes(model, search.peak_bytes, runtime) >= before:
        _rearrange(model, nodes)


def search_pool_order(model: ir.Model, runtime: Runtime, *, tries: int = _POOL_TRIES) -> None:
    """Reorders ``model`` in place if a pool for its larger values is found to shrink by that.

    The most bytes alive at once do not grow. The result is the same in every run.

    Args:
        model: static shapes; its outputs are bound to other memory.
        runtime: that will run it.
        tries: orders that are tried; some milliseconds each.

    Raises:
        InternalError: if a shape or dtype is unknown.
    """
    nodes = list(model.graph)
    search = _Search(nodes, model.graph.outputs, runtime, pooled=True)
    before = plan_pool(model, runtime).total_bytes
    if search.shrink_pool(tries):
        _rearrange(model, [nodes[n] for n in search.order()])
        if plan_pool(model, runtime).total_bytes >= before:
            _rearrange(model, nodes)


def _rearrange(model: ir.Model, nodes: Sequence[ir.Node]) -> None:
    model.graph.remove(nodes)
    model.graph.extend(nodes)


def _arena_bytes(model: ir.Model, peak_bytes: int, runtime: Runtime) -> int:
    return smallest_arena_bytes(record_traffic(model, bound_outputs=True, runtime=runtime),
                                peak_bytes)


class _Search:
    """The best order so far, in units that stay together.

    Attributes:
        first: the traffic of the order that was given.
        peak_bytes: live bytes of the best order.
        region_bytes: an arena in which it works.
    """

    def __init__(self, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], runtime: Runtime, *,
                 pooled: bool = False) -> None:
        self._orders = Orders(nodes, outputs, runtime, pooled=pooled)
        self._units = _units(nodes)
        self._parents, self._children = _links(self._units, parents_of(nodes))
        self._best = list(range(len(self._units)))
        self._random = random.Random(0)
        self.first = self._requests(self._best)
        self.peak_bytes = self.first.peak_bytes
        self._step_bytes = max(round_up(int(_STEP * self.peak_bytes)), round_up(1))
        self.region_bytes = round_up(int(self.peak_bytes * (1 + _STEP)))
        while not (pooled or _holds(self.first, self.region_bytes)):
            self.region_bytes += self._step_bytes

    def order(self) -> list[int]:
        """The nodes' numbers in the best order."""
        return [node for unit in self._best for node in self._units[unit]]

    def run(self, tries: int, good_ratio: float) -> bool:
        """Whether one of so many orders was better than the first."""
        found = False
        for _ in range(tries):
            if self.region_bytes <= good_ratio * self.peak_bytes:
                break
            order = self._shuffled()
            requests = self._requests(order)
            smaller = self.region_bytes - self._step_bytes
            if requests.peak_bytes > self.peak_bytes or not _holds(requests, smaller):
                continue
            while smaller > requests.peak_bytes and _holds(requests, smaller - self._step_bytes):
                smaller -= self._step_bytes
            self._best, self.peak_bytes, self.region_bytes = order, requests.peak_bytes, smaller
            found = True
        return found

    def shrink_pool(self, tries: int) -> bool:
        """Whether one of so many orders has a smaller pool than the first."""
        least = _pool_bytes(self.first)
        first = least
        for _ in range(tries):
            order = self._shuffled()
            requests = self._requests(order)
            if requests.peak_bytes <= self.peak_bytes and (size := _pool_bytes(requests)) <= least:
                # An equal one may lead to a better one.
                self._best, self.peak_bytes, least = order, requests.peak_bytes, size
        return least < first

    def _requests(self, order: Sequence[int]) -> Requests:
        return self._orders.requests(n for unit in order for n in self._units[unit])

    def _shuffled(self) -> list[int]:
        """The best order with a stretch of it shuffled; every unit behind those it reads from."""
        draw, best = self._random, self._best
        reach = draw.choice(_REACHES)
        length = len(best) // draw.choice(_STRETCHES)
        start = draw.randrange(len(best) - length + 1)
        stretch = best[start:start + length]
        wish = {unit: at + draw.uniform(0, reach) for at, unit in enumerate(stretch)}
        missing = {u: sum(p in wish for p in self._parents[u]) for u in stretch}
        ready = [(wish[u], u) for u in stretch if not missing[u]]
        heapq.heapify(ready)
        placed = []
        while ready:
            _, unit = heapq.heappop(ready)
            placed.append(unit)
            for child in self._children[unit]:
                if child in wish:
                    missing[child] -= 1
                    if not missing[child]:
                        heapq.heappush(ready, (wish[child], child))
        return [*best[:start], *placed, *best[start + length:]]


def _pool_bytes(requests: Requests) -> int:
    """The memory of a quick layout of all larger buffers."""
    sizes: dict[int, int] = {}
    starts: dict[int, int] = {}
    intervals = []
    least = int(_POOLED_SHARE * requests.peak_bytes)
    at = 0
    for number, (buffer, size) in enumerate(requests.items):
        while number >= requests.ends[at]:
            at += 1
        if size >= least:
            starts[buffer], sizes[buffer] = at, size
        elif not size and buffer in starts:
            intervals.append(Interval(starts.pop(buffer), at + 1, sizes[buffer]))
    last = len(requests.ends)
    intervals += [Interval(start, last, sizes[buffer]) for buffer, start in starts.items()]
    return quick_size_bytes(intervals)


def _holds(requests: Requests, region_bytes: int) -> bool:
    return all(fits_region(requests.items, round_up(int(region_bytes * factor)))
               for factor in _LARGER)


def _units(nodes: Sequence[ir.Node]) -> list[list[int]]:
    """Nodes that stay together: what is made from weights alone stays before its only reader.

    A decoded weight would otherwise wait beside others of its kind.
    """
    given: set[ir.Value] = set()
    units: list[list[int]] = []
    waiting: list[int] = []
    for number, node in enumerate(nodes):
        inner = all(v is None or v.producer() is None or v in given for v in node.inputs)
        reading = {user for out in node.outputs for user, _ in out.uses()}
        if inner and len(reading) == 1 and not any(v.is_graph_input() for v in node.inputs if v):
            given.update(node.outputs)
            waiting.append(number)
            continue
        units.append([*waiting, number])
        waiting = []
    return units + ([waiting] if waiting else [])


def _links(units: Sequence[Sequence[int]], parents: Sequence[set[int]],
           ) -> tuple[list[set[int]], list[list[int]]]:
    """For each unit those that it reads from, and those that read from it."""
    home = {node: unit for unit, nodes in enumerate(units) for node in nodes}
    above = [{home[p] for node in nodes for p in parents[node]} - {unit}
             for unit, nodes in enumerate(units)]
    below: list[list[int]] = [[] for _ in units]
    for unit, reads in enumerate(above):
        for parent in reads:
            below[parent].append(unit)
    return above, below


__all__ = ["GOOD_RATIO", "search_order", "search_pool_order"]
