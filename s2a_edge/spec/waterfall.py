"""A requirement as bars that start where the one before ended, and what each phase of a run needs.

The arena's bar is taken apart by what is alive at the peak of the graph that needs most there.
"""

from __future__ import annotations

from dataclasses import dataclass

from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.memory_plan import MemoryKind
from s2a_edge.spec.requirement import How, LineKind, Requirement

_AT_PEAK = {
    MemoryKind.SAVED: "saved for the backward",
    MemoryKind.WORKING: "working memory",
    MemoryKind.GRADIENTS: "gradients on their way",
    MemoryKind.INPUTS: "inputs in the arena",
    MemoryKind.CONSTANTS: "constants, results",
}


@dataclass(frozen=True)
class Bar:
    """One part of a requirement.

    Attributes:
        label: what it is.
        kind: of a line, ``saved``, ``working`` and so on inside the arena.
        start_bytes: all bars before it.
        size_bytes: its own.
        how: how its size is known.
    """

    label: str
    kind: str
    start_bytes: int
    size_bytes: int
    how: How

    @property
    def end_bytes(self) -> int:
        """All bars up to it."""
        return self.start_bytes + self.size_bytes


@dataclass(frozen=True)
class PhaseNeed:
    """What a phase of a run needs in all."""

    phase: str
    total_bytes: int
    how: How


def waterfall(manifest: Manifest, needed: Requirement) -> tuple[Bar, ...]:
    """The bars of a requirement, in the order of its lines; together they are its total."""
    bars: list[Bar] = []
    for line in needed.lines:
        if line.kind is LineKind.ARENA:
            parts = _arena_parts(manifest, needed)
        else:
            parts = [(line.label, line.kind.value, line.size_bytes)]
        for label, kind, size_bytes in parts:
            start_bytes = bars[-1].end_bytes if bars else 0
            bars.append(Bar(label, kind, start_bytes, size_bytes, line.how))
    return tuple(bars)


def phase_needs(manifest: Manifest, needed: Requirement) -> tuple[PhaseNeed, ...]:
    """Training step, evaluation and update of a training process, and an export of its own.

    All graphs of a training process share its arena; a phase that needs less leaves the rest of it
    untouched. An export loads no graph: it streams the weights through one chunk.
    """
    beside_bytes = needed.total_bytes - needed.of_kind(LineKind.ARENA)
    phases = [
        PhaseNeed(phase, beside_bytes + needed.arenas[file], "planned")
        for phase, file in (
            ("training step", needed.train_graph),
            ("evaluation", manifest.graphs.eval.file),
            ("update", manifest.graphs.optimizer.file),
        )
        if file in needed.arenas
    ]
    export_bytes = needed.of_kind(
        LineKind.RUNTIME, LineKind.WEIGHTS, LineKind.TRAINABLES, LineKind.OTHER
    )
    return (*phases, PhaseNeed("export, on its own", export_bytes, "planned"))


def _arena_parts(manifest: Manifest, needed: Requirement) -> list[tuple[str, str, int]]:
    graphs = manifest.graphs
    plans = {graph.file: graph.plan for graph in (*graphs.train, graphs.eval)}
    plans[graphs.optimizer.file] = graphs.optimizer.plan
    largest = max(needed.arenas, key=lambda file: needed.arenas[file], default="")
    left_bytes = needed.arena_bytes
    parts = []
    for kind, label in _AT_PEAK.items():
        # No part may be larger than what there is: a plan of another runtime has other peaks.
        size_bytes = min(left_bytes, plans[largest].at_peak.get(kind, 0)) if largest else 0
        left_bytes -= size_bytes
        if size_bytes:
            parts.append((f"arena: {label}", kind.value, size_bytes))
    if left_bytes:
        parts.append(("arena: rounding and gaps", LineKind.ARENA.value, left_bytes))
    return parts
