"""The memory plan of one graph: lifetimes, the peak and who is alive there, the arena it needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.graph import nbytes_of
from s2a_edge.pack.plan.arena import round_up, rounded_peak_bytes, smallest_arena_bytes
from s2a_edge.pack.plan.bound import lower_bound_bytes
from s2a_edge.pack.plan.buffers import Buffer, Traffic, record_traffic
from s2a_edge.pack.plan.liveness import alive_at, live_bytes, peak_node
from s2a_edge.pack.plan.pool import overwriting_buffers, plan_pool, pooled_buffers, pooled_values
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
        traffic: every allocation and release in the arena, for the simulator and for tools.
        pooled: buffers with a place in the pool.
        bound_outputs: graph outputs live in memory of the caller.
        runtime: the onnxruntime that the plan is for.
    """

    plan: MemoryPlan
    timeline: tuple[Moment, ...]
    largest_at_peak: tuple[Buffer, ...]
    traffic: Traffic
    pooled: tuple[Buffer, ...]
    bound_outputs: bool
    runtime: Runtime

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All of them, in the order in which they begin to live."""
        return tuple(sorted((*self.traffic.buffers, *self.pooled), key=lambda b: b.start))


@dataclass(frozen=True)
class ArenaPlan:
    """The part of a plan that is quick to make: nothing is bounded, nothing verified.

    Attributes:
        arena_bytes: as in :class:`~s2a_edge.spec.memory_plan.MemoryPlan`.
        least_bytes: what is alive at once, results over operands wherever that is possible; no
            order that keeps this peak needs less, with a pool or without.
        saved_bytes: as there.
        node_count: as there.
        pool_bytes: as there.
    """

    arena_bytes: int
    least_bytes: int
    saved_bytes: int
    node_count: int
    pool_bytes: int = 0


def plan_arena(model: ir.Model, *, threads: int, pool: bool = False) -> ArenaPlan:
    """The arena that ``model`` needs; what :func:`make_plan` says of it, several times faster.

    With ``pool``, that of the same model after :func:`s2a_edge.pack.plan.pool.use_pool`.
    """
    runtime = Runtime(threads, (1, 32))
    if pool and not pooled_values(model):
        layout = plan_pool(model, runtime)
        bound = {value for one in layout.buffers for value in one.values}
        pooled = tuple(one.buffer for one in layout.buffers)
        pool_bytes = layout.size_bytes
    else:
        bound, pooled, pool_bytes = set(), pooled_buffers(model), pool_size_bytes(model)
    traffic = record_traffic(model, bound_outputs=True, runtime=runtime, bound=bound)
    buffers, count = (*traffic.buffers, *pooled), len(traffic.nodes)
    least_bytes = rounded_peak_bytes(overwriting_buffers(model), count)
    return ArenaPlan(pool_bytes + _arena_bytes(traffic), least_bytes, _saved_bytes(buffers), count,
                     pool_bytes)


def pool_size_bytes(model: ir.Model) -> int:
    """Where the last value in the pool of ``model`` ends; 0 without a pool."""
    return max((offset + nbytes_of(value) for value, offset in pooled_values(model).items()),
               default=0)


def make_plan(model: ir.Model, *, bound_outputs: bool, runtime: Runtime) -> PlanResult:
    """Plans ``model`` without checking the result (see :func:`s2a_edge.pack.plan.plan_memory`).

    Raises:
        InternalError: if a shape or dtype is unknown, or the runtime would not execute a node as
            it is written.
    """
    for node in model.graph:
        require_executed_as_written(node)
    traffic = record_traffic(model, bound_outputs=bound_outputs, runtime=runtime)
    pooled, pool_bytes = pooled_buffers(model), pool_size_bytes(model)
    buffers, count = (*traffic.buffers, *pooled), len(traffic.nodes)
    live = live_bytes(buffers, count)
    live[MemoryKind.CONSTANTS] += traffic.counted_bytes
    peak = peak_node(live)
    timeline = tuple(
        Moment(node.name, node.op_type, {k: int(array[at]) for k, array in live.items()})
        for at, node in enumerate(traffic.nodes))
    arena_bytes = pool_bytes + _arena_bytes(traffic)
    whole_image = Runtime(runtime.threads, WHOLE_IMAGE_VERSIONS[-1])
    their_traffic = record_traffic(model, bound_outputs=bound_outputs, runtime=whole_image)
    plan = MemoryPlan(
        liveness_peak_bytes=timeline[peak].total_bytes if timeline else 0,
        lower_bound_bytes=traffic.counted_bytes + lower_bound_bytes(
            model, bound_outputs=bound_outputs, runtime=runtime),
        arena_bytes=arena_bytes,
        peak_node=timeline[peak].name if timeline else "",
        at_peak=dict(timeline[peak].live_bytes) if timeline else {},
        saved_bytes=_saved_bytes(buffers),
        node_count=len(timeline),
        threads=runtime.threads,
        whole_image_arena_bytes=arena_bytes if their_traffic == traffic
        else pool_bytes + _arena_bytes(their_traffic),
        whole_image_thread_bytes=_whole_image_thread_bytes(model),
        pool_bytes=pool_bytes,
    )
    return PlanResult(plan, timeline, tuple(alive_at(buffers, peak)), traffic, pooled,
                      bound_outputs, runtime)


def _arena_bytes(traffic: Traffic) -> int:
    return smallest_arena_bytes(traffic, rounded_peak_bytes(traffic.buffers, len(traffic.nodes)))


def _saved_bytes(buffers: Iterable[Buffer]) -> int:
    return sum(b.size_bytes for b in buffers if b.kind is MemoryKind.SAVED)


def _whole_image_thread_bytes(model: ir.Model) -> int:
    """The most that one thread takes in a convolution of :data:`WHOLE_IMAGE_VERSIONS`."""
    one_thread = Runtime(1, WHOLE_IMAGE_VERSIONS[-1])
    sizes = [round_up(sum(workspaces_of(node, one_thread).after_bytes))
             for node in model.graph if node.op_type == "Conv"]
    return max([THREAD_BYTES, *sizes])
