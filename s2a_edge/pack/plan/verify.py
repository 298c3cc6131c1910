"""An independent check of a memory plan: the run is replayed with reference counts.

Nothing of ``buffers``, ``liveness`` or ``arena``'s bookkeeping is used, only the facts about
kernels. Buffers are objects here, values hold references to them, and a buffer dies when the last
reference is dropped: the way a runtime sees it, not by intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from s2a_edge.pack.graph import nbytes_of
from s2a_edge.pack.plan import kernel_memory
from s2a_edge.pack.plan.planner import PlanResult
from s2a_edge.pack.plan.workspaces import Runtime, workspaces_of
from s2a_edge.spec.errors import InternalError
from s2a_edge.spec.pool_ports import pool_offset


@dataclass(eq=False)
class _Memory:
    """One piece of memory; ``references`` are reads to come, by any value that shares it.

    ``place`` is its offset in the pool, None in the arena.
    """

    size_bytes: int
    references: int
    place: int | None = None

    def meets(self, other: _Memory) -> bool:
        """Whether both have bytes of the pool in common."""
        return (self.place is not None and other.place is not None
                and self.place < other.place + other.size_bytes
                and other.place < self.place + self.size_bytes)


def verify_plan(model: ir.Model, result: PlanResult) -> None:
    """Replays ``model`` and compares every node with the plan's timeline, then the summary.

    Raises:
        InternalError: naming the first node at which they differ, or the field of the plan.
    """
    replayed = list(_replay(model, bound_outputs=result.bound_outputs, runtime=result.runtime))
    planned = [(moment.name, moment.total_bytes) for moment in result.timeline]
    for (name, got), (planned_name, expected) in zip(replayed, planned, strict=True):
        if (name, got) != (planned_name, expected):
            _differ(f"node {planned_name}", f"{expected} bytes alive", f"{name}: {got}")
    plan = result.plan
    peak = max((total for _, total in replayed), default=0)
    if plan.liveness_peak_bytes != peak:
        _differ("liveness_peak_bytes", str(peak), str(plan.liveness_peak_bytes))
    if sum(plan.at_peak.values()) != peak:
        _differ("at_peak", f"a sum of {peak}", str(plan.at_peak))
    if plan.pool_bytes > plan.arena_bytes:
        _differ("pool_bytes", f"a part of {plan.arena_bytes}", str(plan.pool_bytes))
    if not plan.lower_bound_bytes <= peak <= plan.arena_bytes:
        _differ("arena_bytes", f"lower bound ≤ peak {peak} ≤ arena",
                f"{plan.lower_bound_bytes}, {plan.arena_bytes}")
    if replayed and (plan.peak_node, peak) not in replayed:
        _differ("peak_node", f"a node with {peak} bytes alive", plan.peak_node)


def _differ(where: str, expected: str, got: str) -> None:
    raise InternalError(where=f"memory plan, {where}", expected=expected, got=got,
                        todo="report this")


def _replay(model: ir.Model, *, bound_outputs: bool, runtime: Runtime) -> Iterator[tuple[str, int]]:
    """(node name, bytes alive while it runs), node after node."""
    remaining: dict[ir.Value, int] = {}
    for node in model.graph:
        for value in node.inputs:
            if value is not None:
                remaining[value] = remaining.get(value, 0) + 1
    kept = set(model.graph.outputs)
    memory: dict[ir.Value, _Memory | None] = {}
    alive: set[_Memory] = set()
    constants_bytes = kernel_memory.counted_initializer_bytes(model)
    for node in model.graph:
        for value in kernel_memory.present_outputs(node):
            count = remaining.get(value, 0) + (value in kept)
            home: _Memory | None
            place = pool_offset(value.name or "") if value in kept else None
            if place is not None:
                home = placed = _place(node, value, memory, remaining.get(value, 0), place)
                _require_free(node, placed, alive)
            else:
                home = None if value in kept and bound_outputs else _home(
                    node, value, memory, count, value in kept)
            memory[value] = home
            if home is not None:
                alive.add(home)
        temporary = workspaces_of(node, runtime)
        yield node.name or "", (constants_bytes + sum(m.size_bytes for m in alive)
                                + sum(temporary.before_bytes) + sum(temporary.after_bytes))
        for value in node.inputs:
            held = memory.get(value) if value is not None else None
            if held is not None:
                held.references -= 1
                if held.references == 0:
                    alive.discard(held)


def _home(node: ir.Node, value: ir.Value, memory: dict[ir.Value, _Memory | None], count: int,
          is_output: bool) -> _Memory | None:
    """The memory of an output; None if it is not the arena's."""
    if not is_output:
        view = kernel_memory.alias_source(node)
        if view is not None:
            shared = memory.get(view)
            if shared is not None:
                shared.references += count
            return shared
        source = kernel_memory.in_place_source(node)
        taken = memory.get(source) if source is not None else None
        if taken is not None and taken.references == 1:
            taken.references += count
            return taken
    return _Memory(nbytes_of(value), count)


def _place(node: ir.Node, value: ir.Value, memory: dict[ir.Value, _Memory | None], count: int,
           place: int) -> _Memory:
    """The memory of a value in the pool: an operand's, if it lies there and dies here."""
    for source in kernel_memory.overwritable(node):
        taken = memory.get(source)
        reads = sum(taken is memory.get(x) for x in node.inputs if x is not None)
        if taken is not None and taken.place == place and taken.references == reads:
            taken.references += count
            return taken
    return _Memory(nbytes_of(value), count, place)


def _require_free(node: ir.Node, home: _Memory, alive: set[_Memory]) -> None:
    """Nothing that is still read may lie where ``home`` does.

    Raises:
        InternalError: if it does.
    """
    if home not in alive and any(home.meets(other) for other in alive):
        _differ(f"node {node.name}", "a free place in the pool",
                f"{home.size_bytes} bytes at {home.place}, which others use")
