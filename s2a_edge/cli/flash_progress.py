"""Progress of ``flash`` and ``pull`` on stderr: a bar with rate and time left, or lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from s2a_edge.cli.bar_view import BarView
from s2a_edge.spec.units import format_bytes

_LINE_EVERY_S = 5.0

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from s2a_edge.cli.output import Output
    from s2a_edge.link.flash import Flashing


class FlashView(BarView):
    """Shows :class:`s2a_edge.link.flash.Flashing` values; a context manager.

    Args:
        output: says whether there is a terminal, and whether to be quiet.
        clock: seconds; monotonic.
    """

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(output, _columns)
        self._shown: str | None = None
        self._clock = clock
        self._tenth, self._begun_s, self._said_s = 0, 0.0, 0.0

    def update(self, now: Flashing) -> None:
        """Show where it stands."""
        if now.phase != self._shown:
            self._begin(now)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=now.done_bytes)
        elif now.total_bytes:
            self._log(now)

    def _log(self, now: Flashing) -> None:
        """Where there is no bar: a line now and then, at most one for each tenth."""
        now_s, tenth = self._clock(), 10 * now.done_bytes // now.total_bytes
        if tenth <= self._tenth or tenth > 9 or now_s < self._said_s + _LINE_EVERY_S:
            return
        self._tenth, self._said_s = tenth, now_s
        rate = now.done_bytes / max(now_s - self._begun_s, 1e-3)
        left_s = (now.total_bytes - now.done_bytes) / rate
        self._output.note(
            f"{now.phase}: {100 * now.done_bytes // now.total_bytes} % of "
            f"{format_bytes(now.total_bytes)}, {format_bytes(int(rate))}/s, "
            f"about {_duration(left_s)} left"
        )

    def _begin(self, now: Flashing) -> None:
        """A new phase: the estimate first, then what is going on."""
        self._shown = now.phase
        self._tenth, self._begun_s = 0, self._clock()
        self._said_s = self._begun_s
        if now.phase == "fetching":
            self._output.note(estimate(now))
        elif now.phase == "sending":
            if not now.total_bytes:
                self._output.note("nothing to send: the board has all of it")
                return
            self._output.note(estimate(now))
        elif self._bar is None:
            self._output.note(f"board: {now.phase}")
        self._begin_bar(now.phase, now.total_bytes or None)


def estimate(now: Flashing) -> str:
    """``sending 12 MiB (84 MiB are there), about 2 min``."""
    text = f"{now.phase} {format_bytes(now.total_bytes)}"
    if now.there_bytes:
        text += f" ({format_bytes(now.there_bytes)} are there)"
    if now.estimate_s is not None:
        text += f", about {_duration(now.estimate_s)}"
    return text


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def _columns() -> tuple[ProgressColumn, ...]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
