"""Memory against step time as a picture, with Pillow alone; the colour is the gradient error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.spec.storage import replacing
from s2a_edge.spec.units import MIB, format_bytes

if TYPE_CHECKING:
    from s2a_edge.spec.manifest_search import FrontierRow, SearchRecord

WIDTH, HEIGHT = 1200, 760
_LEFT, _TOP, _RIGHT, _BOTTOM = 90, 70, 990, 680
_INK, _FAINT, _BUDGET, _PAPER = (40, 40, 40), (225, 225, 225), (200, 0, 0), (255, 255, 255)
# Least and most error: blue, and orange.
_EXACT, _COARSE = (40, 90, 200), (240, 130, 20)
_RADIUS = 6
_TICKS = 8


@dataclass(frozen=True)
class _Axis:
    """Values from ``low`` to ``high`` on a logarithmic scale between two pixels."""

    low: float
    high: float
    first: int
    last: int

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / (math.log(self.high / self.low) or 1.0)
        return self.first + (self.last - self.first) * share

    def ticks(self) -> Iterator[float]:
        """Values in equal steps of the scale."""
        for step in range(_TICKS + 1):
            yield self.low * (self.high / self.low) ** (step / _TICKS)


def colour(error: float, most: float) -> tuple[int, int, int]:
    """Between the colours of no error and of ``most``."""
    share = min(1.0, error / most) if most > 0 else 0.0
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_EXACT, _COARSE, strict=True))
    return red, green, blue


def write_png(path: Path, title: str, search: SearchRecord) -> None:
    """Draw every row of the frontier, the budget, and the chosen one.

    Raises:
        StorageError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    sizes = [*(row.total_bytes for row in search.rows), search.budget_bytes]
    times = [max(row.step_ms, 1e-6) for row in search.rows]
    x = _Axis(min(sizes) / 1.05, max(sizes) * 1.05, _LEFT, _RIGHT)
    y = _Axis(min(times) / 1.1, max(times) * 1.1, _BOTTOM, _TOP)
    _grid(draw, font, x, y)
    at = x.at(search.budget_bytes)
    draw.line([(at, _TOP), (at, _BOTTOM)], _BUDGET, 2)
    draw.text((at + 4, _TOP - 14), f"budget {format_bytes(search.budget_bytes)}", _BUDGET, font)
    most = max(row.gradient_error for row in search.rows)
    for number, row in enumerate(search.rows):
        centre = x.at(row.total_bytes), y.at(max(row.step_ms, 1e-6))
        _point(draw, font, centre, row, most, chosen=number == search.chosen)
    _legend(draw, font, most)
    draw.text((_LEFT, 14), title, _INK, font)
    chosen = search.rows[search.chosen]
    draw.text((_LEFT, 32), f"chosen: {chosen.flags}", _INK, font)
    with replacing(path, "to write the picture") as file:
        image.save(file, "PNG")


def _grid(draw: Any, font: Any, x: _Axis, y: _Axis) -> None:
    for value in x.ticks():
        at = x.at(value)
        draw.line([(at, _TOP), (at, _BOTTOM)], _FAINT, 1)
        draw.text((at - 18, _BOTTOM + 8), f"{value / MIB:.0f} MiB", _INK, font)
    for value in y.ticks():
        at = y.at(value)
        draw.line([(_LEFT, at), (_RIGHT, at)], _FAINT, 1)
        draw.text((12, at - 6), f"{value:.3g} ms", _INK, font)
    draw.text((_LEFT, _BOTTOM + 30), "memory of the whole process of training", _INK, font)


def _point(draw: Any, font: Any, centre: tuple[float, float], row: FrontierRow, most: float, *,
           chosen: bool) -> None:
    x, y = centre
    box = [x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS]
    draw.ellipse(box, colour(row.gradient_error, most), _INK)
    if chosen:
        ring = [x - 2 * _RADIUS, y - 2 * _RADIUS, x + 2 * _RADIUS, y + 2 * _RADIUS]
        draw.ellipse(ring, None, _BUDGET, 2)
    depth = "" if row.blocks == "all" else f" {row.blocks}"
    draw.text((x + 9, y - 14), f"{row.micro_batch}, {row.frozen}{depth}", _INK, font)


def _legend(draw: Any, font: Any, most: float) -> None:
    x = _RIGHT + 30
    draw.text((x, _TOP), "gradient error", _INK, font)
    for step in range(5):
        error, top = most * step / 4, _TOP + 20 + 20 * step
        draw.ellipse([x, top, x + 12, top + 12], colour(error, most), _INK)
        draw.text((x + 20, top), f"{error:.2%}", _INK, font)
    draw.text((x, _TOP + 130), "label: micro-batch,", _INK, font)
    draw.text((x, _TOP + 144), "weights, blocks", _INK, font)
    draw.ellipse([x, _TOP + 170, x + 24, _TOP + 194], None, _BUDGET, 2)
    draw.text((x + 32, _TOP + 176), "chosen", _INK, font)


__all__ = ["colour", "write_png"]
