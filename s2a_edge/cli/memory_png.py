"""Memory over a training step as a picture, with Pillow alone.

Two panels over the same nodes: what comes and goes, in its own scale, and below it the whole
process, with the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2a_edge.cli.memory_layers import Layer, totals
from s2a_edge.spec.storage import replacing
from s2a_edge.spec.units import MIB, format_bytes

WIDTH, HEIGHT = 1400, 860
LEFT, RIGHT = 90, 240
_ARENA_PANEL, _WHOLE_PANEL = (80, 480), (530, 800)
_INK, _FAINT, _BUDGET, _PAPER = (40, 40, 40), (225, 225, 225), (200, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class _Panel:
    """Part of the picture between two rows, and its scale."""

    draw: Any
    font: Any
    top: int
    bottom: int
    most_bytes: float

    def y(self, size_bytes: float) -> float:
        return self.bottom - (self.bottom - self.top) * size_bytes / self.most_bytes

    def grid(self, title: str) -> None:
        ticks = next(n for n in (2**k for k in range(40)) if n * MIB * 9 >= self.most_bytes)
        for mib in range(0, int(self.most_bytes / MIB) + 1, ticks):
            y = self.y(mib * MIB)
            self.draw.line([(LEFT, y), (WIDTH - RIGHT, y)], _FAINT, 1)
            self.draw.text((12, y - 6), f"{mib} MiB", _INK, self.font)
        self.draw.text((LEFT, self.top - 18), title, _INK, self.font)

    def columns(self, shown: Sequence[Layer]) -> None:
        """One column of pixels after the other; of its nodes, the one with the most counts."""
        sums, width = totals(shown), WIDTH - LEFT - RIGHT
        for column in range(width):
            first = column * len(sums) // width
            end = max(first + 1, (column + 1) * len(sums) // width)
            node = max(range(first, end), key=sums.__getitem__)
            below = 0
            for layer in shown:
                above = below + layer.size_bytes[node]
                if above > below:
                    ends = [(LEFT + column, self.y(below)), (LEFT + column, self.y(above))]
                    self.draw.line(ends, layer.colour)
                below = above

    def mark(self, node: int, nodes: int, size_bytes: int) -> None:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (node + 0.5) / nodes
        self.draw.line([(x, self.y(size_bytes)), (x, self.bottom)], _INK, 1)


def write_png(
    path: Path, title: str, shown: Sequence[Layer], nodes: Sequence[str], budget_bytes: int | None
) -> None:
    """Draw the layers stacked over the nodes, left to right as they run.

    Raises:
        StorageError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    sums = totals(shown)
    peak = max(range(len(sums)), key=sums.__getitem__)
    moving = [layer for layer in shown if not layer.steady]
    if moving:
        tops = totals(moving)
        panel = _Panel(draw, font, *_ARENA_PANEL, max(tops) * 1.05)
        panel.grid("what comes and goes")
        panel.columns(moving)
        panel.mark(peak, len(nodes), tops[peak])
    whole = _Panel(draw, font, *_WHOLE_PANEL, max(*sums, budget_bytes or 0, 1) * 1.05)
    whole.grid("the whole process")
    whole.columns(shown)
    whole.mark(peak, len(nodes), sums[peak])
    if budget_bytes is not None:
        y = whole.y(budget_bytes)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], _BUDGET, 2)
        label = f"budget {format_bytes(budget_bytes)}"
        draw.text((WIDTH - RIGHT + 6, y - 6), label, _BUDGET, font)
    draw.text((LEFT, 14), title, _INK, font)
    draw.text((LEFT, 32), f"peak {format_bytes(sums[peak])} at {nodes[peak]}", _INK, font)
    draw.text((LEFT, HEIGHT - 36), f"{len(nodes)} nodes in the order they run", _INK, font)
    _legend(draw, font, shown, peak)
    with replacing(path, "to write the picture") as file:
        image.save(file, "PNG")


def _legend(draw: Any, font: Any, shown: Sequence[Layer], peak: int) -> None:
    x, first = WIDTH - RIGHT + 16, _ARENA_PANEL[0]
    draw.text((x, first - 18), "at the peak", _INK, font)
    for row, layer in enumerate(reversed(shown)):
        top = first + 34 * row
        draw.rectangle([x, top, x + 14, top + 14], layer.colour, _INK)
        draw.text((x + 22, top - 2), layer.name, _INK, font)
        draw.text((x + 22, top + 11), format_bytes(layer.size_bytes[peak]), _INK, font)
