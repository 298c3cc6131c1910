"""From work to milliseconds.

The time of a node is ``a + b flops + c bytes`` with rates of its kind that are not negative, fitted
to timed runs: least squares over the nodes of a kind, each weighted by the inverse of its time, so
that small nodes, of which there are many, count for as much as they take. Kinds that were not timed
get the rates of all element-wise nodes together. What a run takes beside its nodes is a time for
each node.

A device that cannot be timed has peak rates only: what its profile says of its GPU.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2a_edge.pack.search.work import GraphWork, Work
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.profile_facts import DeviceProfile


@dataclass(frozen=True)
class Rates:
    """Milliseconds for each node, operation and byte."""

    node_ms: float
    flop_ms: float
    byte_ms: float

    def ms(self, work: Work) -> float:
        """The time of ``work``."""
        return (self.node_ms * work.nodes + self.flop_ms * work.flops
                + self.byte_ms * work.size_bytes)


@dataclass(frozen=True)
class TimedNode:
    """One node of a timed run."""

    kind: str
    work: Work
    ms: float


@dataclass(frozen=True)
class Costs:
    """The time model.

    Attributes:
        kinds: rates by kind.
        others: of kinds that were not timed.
        overhead_ms: of a run for each node, beside the nodes' own times.
    """

    kinds: Mapping[str, Rates]
    others: Rates
    overhead_ms: float = 0.0

    def ms(self, work: GraphWork) -> float:
        """The time of one run of a graph."""
        nodes = sum(w.nodes for w in work.values())
        return self.overhead_ms * nodes + sum(self.kinds.get(kind, self.others).ms(w)
                                              for kind, w in work.items())


def fit_costs(timed: Sequence[TimedNode], runs: Iterable[tuple[float, float, int]]) -> Costs:
    """Fits the model.

    Args:
        timed: nodes of all timed runs.
        runs: of each run its time in ms, the sum of its nodes' times, and their number.
    """
    by_kind: dict[str, list[TimedNode]] = defaultdict(list)
    for node in timed:
        by_kind[node.kind].append(node)
    others = _fit([n for n in timed if not n.work.flops])
    beside = [(whole - inside) / count for whole, inside, count in runs if count]
    return Costs({kind: _fit(nodes) for kind, nodes in by_kind.items()}, others,
                 max(0.0, float(np.median(beside))) if beside else 0.0)


def _fit(nodes: Sequence[TimedNode]) -> Rates:
    """Non-negative least squares: the best of all sets of rates whose solution is not negative."""
    if not nodes:
        return Rates(0.0, 0.0, 0.0)
    times = np.array([n.ms for n in nodes])
    weights = 1.0 / np.maximum(times, 1e-4)
    features = np.array([[n.work.nodes, n.work.flops, n.work.size_bytes] for n in nodes])
    scale = features.max(axis=0)
    scale[scale == 0] = 1.0
    matrix, wanted = features / scale * np.sqrt(weights)[:, None], times * np.sqrt(weights)
    best, least = np.zeros(3), float(wanted @ wanted)
    for count in (1, 2, 3):
        for columns in itertools.combinations(range(3), count):
            part = matrix[:, columns]
            found = np.linalg.lstsq(part, wanted, rcond=None)[0]
            error = float(np.square(part @ found - wanted).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(3), error
                best[list(columns)] = found
    return Rates(*(float(x) for x in best / scale))


def device_costs(profile: DeviceProfile) -> Costs:
    """Peak rates of a device's GPU: arithmetic in float32 and memory traffic, one after the other.

    Raises:
        UsageError: the profile does not have them.
    """
    tflops, bandwidth = profile.gpu.fp16_tflops, profile.memory.bandwidth_gb_per_s
    if tflops is None or bandwidth is None:
        missing = "gpu.fp16_tflops" if tflops is None else "memory.bandwidth_gb_per_s"
        raise UsageError(where="--times-from device", expected=f"{missing} in the profile",
                         got=f"a profile of {profile.name} without", todo="give --times-from host")
    # Without tensor cores float32 runs at half the rate of float16.
    flops_per_s, bytes_per_s = tflops.value * 1e12 / 2, bandwidth.value * 1e9
    return Costs({}, Rates(0.0, 1e3 / flops_per_s, 1e3 / bytes_per_s))


__all__ = ["Costs", "Rates", "TimedNode", "device_costs", "fit_costs"]
