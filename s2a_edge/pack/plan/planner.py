"""The memory plan of one graph: lifetimes, the peak and who is alive there, the arena it needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.plan.arena import round_up, smallest_arena_bytes
from s2a_edge.pack.plan.bound import lower_bound_bytes
from s2a_edge.pack.plan.buffers import Buffer, Traffic, record_traffic
from s2a_edge.pack.plan.liveness import LiveBytes, alive_at, live_bytes, peak_node
from s2a_edge.pack.plan.rewrites import require_executed_as_written
from s2a_edge.pack.plan.workspaces import Runtime, workspaces_of
from s2a_edge.spec.memory_plan import (
    THREAD_BYTES,
    WHOLE_IMAGE_VERSIONS,
    MemoryKind,
    MemoryPlan,
)


@dataclass(frozen=True)
class Moment:
    """The arena while one node runs: bytes alive by kind, as requested by the kernels.

    Small inline constants of the session, which count against the arena's limit all the time, are
    among ``constants``.
    """

    name: str
    op_type: str
    live_bytes: dict[MemoryKind, int]

    @property
    def total_bytes(self) -> int:
        """Bytes alive, all kinds together."""
        return sum(self.live_bytes.values())


@dataclass(frozen=True)
class PlanResult:
    """A plan and what it was made of.

    Attributes:
        plan: what goes into the manifest.
        timeline: one entry per node, in the order of execution.
        largest_at_peak: the buffers alive at the peak, the largest first.
        traffic: every allocation and release, for the simulator and for tools.
        bound_outputs: graph outputs live in memory of the caller.
        runtime: the onnxruntime that the plan is for.
    """

    plan: MemoryPlan
    timeline: tuple[Moment, ...]
    largest_at_peak: tuple[Buffer, ...]
    traffic: Traffic
    bound_outputs: bool
    runtime: Runtime


@dataclass(frozen=True)
class ArenaPlan:
    """The part of a plan that is quick to make: nothing is bounded, nothing verified.

    Attributes:
        arena_bytes: as in :class:`~s2a_edge.spec.memory_plan.MemoryPlan`.
        least_bytes: what is alive at once; no order that keeps this peak needs a smaller arena.
        saved_bytes: as there.
        node_count: as there.
    """

    arena_bytes: int
    least_bytes: int
    saved_bytes: int
    node_count: int


def plan_arena(model: ir.Model, *, threads: int) -> ArenaPlan:
    """The arena that ``model`` needs; what :func:`make_plan` says of it, several times faster."""
    traffic = record_traffic(model, bound_outputs=True, runtime=Runtime(threads, (1, 32)))
    saved_bytes = sum(b.size_bytes for b in traffic.buffers if b.kind is MemoryKind.SAVED)
    least_bytes = _rounded_peak_bytes(traffic)
    return ArenaPlan(smallest_arena_bytes(traffic, least_bytes), least_bytes, saved_bytes,
                     len(traffic.nodes))


def make_plan(model: ir.Model, *, bound_outputs: bool, runtime: Runtime) -> PlanResult:
    """Plans ``model`` without checking the result (see :func:`s2a_edge.pack.plan.plan_memory`).

    Raises:
        InternalError: if a shape or dtype is unknown, or the runtime would not execute a node as
            it is written.
    """
    for node in model.graph:
        require_executed_as_written(node)
    traffic = record_traffic(model, bound_outputs=bound_outputs, runtime=runtime)
    live = live_bytes(traffic.buffers, len(traffic.nodes))
    live[MemoryKind.CONSTANTS] += traffic.counted_bytes
    peak = peak_node(live)
    timeline = tuple(
        Moment(node.name, node.op_type, {k: int(array[at]) for k, array in live.items()})
        for at, node in enumerate(traffic.nodes))
    alive = alive_at(traffic.buffers, peak)
    arena_bytes = smallest_arena_bytes(traffic, _rounded_peak_bytes(traffic))
    whole_image = Runtime(runtime.threads, WHOLE_IMAGE_VERSIONS[-1])
    their_traffic = record_traffic(model, bound_outputs=bound_outputs, runtime=whole_image)
    plan = MemoryPlan(
        liveness_peak_bytes=timeline[peak].total_bytes if timeline else 0,
        lower_bound_bytes=traffic.counted_bytes + lower_bound_bytes(
            model, bound_outputs=bound_outputs, runtime=runtime),
        arena_bytes=arena_bytes,
        peak_node=timeline[peak].name if timeline else "",
        at_peak=dict(timeline[peak].live_bytes) if timeline else {},
        saved_bytes=sum(b.size_bytes for b in traffic.buffers if b.kind is MemoryKind.SAVED),
        node_count=len(timeline),
        threads=runtime.threads,
        whole_image_arena_bytes=arena_bytes if their_traffic == traffic else smallest_arena_bytes(
            their_traffic, _rounded_peak_bytes(their_traffic)),
        whole_image_thread_bytes=_whole_image_thread_bytes(model),
    )
    return PlanResult(plan, timeline, tuple(alive), traffic, bound_outputs, runtime)


def _whole_image_thread_bytes(model: ir.Model) -> int:
    """The most that one thread takes in a convolution of :data:`WHOLE_IMAGE_VERSIONS`."""
    one_thread = Runtime(1, WHOLE_IMAGE_VERSIONS[-1])
    sizes = [round_up(sum(workspaces_of(node, one_thread).after_bytes))
             for node in model.graph if node.op_type == "Conv"]
    return max([THREAD_BYTES, *sizes])


def _rounded_peak_bytes(traffic: Traffic) -> int:
    """The liveness peak in the arena's granules: no arena can be smaller."""
    rounded = [Buffer(b.name, round_up(b.size_bytes), b.kind, b.start, b.end)
               for b in traffic.buffers]
    live: LiveBytes = live_bytes(rounded, len(traffic.nodes))
    return int(np.sum(list(live.values()), axis=0).max(initial=0))
