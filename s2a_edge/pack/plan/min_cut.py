"""The capacity of a minimum cut: Dinic's algorithm on a sparse graph with integer capacities.

Y. Dinitz, "Algorithm for solution of a problem of maximum flow in networks with power estimation",
Soviet Math. Dokl. 11 (1970).
"""

from __future__ import annotations

from collections import deque

UNLIMITED = 1 << 62


class FlowNetwork:
    """A directed graph of ``count`` vertices with capacities on its edges."""

    def __init__(self, count: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(count)]
        # Edge 2i and its reverse 2i + 1.
        self._target: list[int] = []
        self._left: list[int] = []

    def connect(self, start: int, end: int, capacity: int) -> None:
        """Adds an edge."""
        for a, b, left in ((start, end, capacity), (end, start, 0)):
            self._edges[a].append(len(self._target))
            self._target.append(b)
            self._left.append(left)

    def min_cut(self, source: int, sink: int) -> int:
        """The least capacity that separates ``sink`` from ``source``; uses the network up."""
        total = 0
        while (level := self._levels(source, sink))[sink] >= 0:
            untried = [0] * len(self._edges)
            while pushed := self._push(source, sink, level, untried):
                total += pushed
        return total

    def _levels(self, source: int, sink: int) -> list[int]:
        level = [-1] * len(self._edges)
        level[source] = 0
        queue = deque([source])
        while queue and level[sink] < 0:
            vertex = queue.popleft()
            for edge in self._edges[vertex]:
                target = self._target[edge]
                if self._left[edge] > 0 and level[target] < 0:
                    level[target] = level[vertex] + 1
                    queue.append(target)
        return level

    def _push(self, source: int, sink: int, level: list[int], untried: list[int]) -> int:
        """Sends flow along one shortest path with capacity left; 0 if there is none."""
        path: list[int] = []
        vertex = source
        while vertex != sink:
            edges = self._edges[vertex]
            while untried[vertex] < len(edges):
                edge = edges[untried[vertex]]
                if self._left[edge] > 0 and level[self._target[edge]] == level[vertex] + 1:
                    break
                untried[vertex] += 1
            else:
                if not path:
                    return 0
                # A dead end: step back and do not come this way again.
                vertex = self._target[path.pop() ^ 1]
                untried[vertex] += 1
                continue
            path.append(edge)
            vertex = self._target[edge]
        flow = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= flow
            self._left[edge ^ 1] += flow
        return flow
