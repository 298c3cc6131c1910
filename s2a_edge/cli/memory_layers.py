"""What a drawing of memory over a training step shows: layers, from the bottom up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s2a_edge.spec.memory_plan import MemoryKind
from s2a_edge.spec.requirement import LineKind, Requirement
from s2a_edge.spec.timeline import Timeline

RGB = tuple[int, int, int]

# What the whole process holds all the time, then what comes and goes in the arena.
_STEADY: tuple[tuple[str, RGB, tuple[LineKind, ...]], ...] = (
    ("runtime", (189, 189, 189), (LineKind.RUNTIME, LineKind.SESSIONS, LineKind.OTHER)),
    ("weights", (107, 142, 173), (LineKind.WEIGHTS,)),
    ("trainables", (120, 94, 160), (LineKind.TRAINABLES,)),
    ("gradients", (200, 110, 160), (LineKind.GRADIENTS,)),
    ("optimizer", (150, 110, 70), (LineKind.OPTIMIZER,)),
    ("inputs", (110, 170, 120), (LineKind.INPUTS,)),
)
_ARENA: tuple[tuple[str, RGB, tuple[MemoryKind, ...]], ...] = (
    ("saved", (214, 96, 77), (MemoryKind.SAVED,)),
    ("working", (244, 180, 90), (MemoryKind.WORKING, MemoryKind.CONSTANTS, MemoryKind.INPUTS)),
    ("gradients on their way", (232, 150, 190), (MemoryKind.GRADIENTS,)),
)


@dataclass(frozen=True)
class Layer:
    """One kind of memory: its colour, and its bytes in every node; ``steady``: always the same."""

    name: str
    colour: RGB
    size_bytes: Sequence[int]
    steady: bool = False


def layers(timeline: Timeline, needed: Requirement) -> tuple[Layer, ...]:
    """All layers that hold anything, the lowest first."""
    nodes = len(timeline.nodes)
    found = [
        Layer(name, colour, [needed.of_kind(*kinds)] * nodes, steady=True)
        for name, colour, kinds in _STEADY
    ]
    live = timeline.live_bytes()
    for name, colour, kinds in _ARENA:
        columns = [live[kind] for kind in kinds]
        found.append(Layer(name, colour, [sum(parts) for parts in zip(*columns, strict=True)]))
    return tuple(layer for layer in found if any(layer.size_bytes))


def totals(shown: Sequence[Layer]) -> list[int]:
    """Bytes of all layers together, in every node."""
    return [sum(parts) for parts in zip(*(layer.size_bytes for layer in shown), strict=True)]
