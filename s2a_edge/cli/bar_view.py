"""What views of progress have in common: one bar at a time on a terminal, and none elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn, TaskID

    from s2a_edge.cli.output import Output

View = TypeVar("View", bound="BarView")


class BarView:
    """A context manager, in which a bar is shown where there is a terminal.

    Args:
        output: says whether there is a terminal, and whether to be quiet.
        columns: makes the bar's columns; not called without a terminal, since rich's take memory.
    """

    def __init__(self, output: Output, columns: Callable[[], Sequence[ProgressColumn]]) -> None:
        self._output = output
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        console = output.live()
        if console is not None:
            from rich.progress import Progress

            self._bar = Progress(*columns(), console=console)

    def __enter__(self: View) -> View:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _begin_bar(self, description: str, total: int | None, **fields: Any) -> None:
        """Another bar in place of the one before; ``fields`` are what columns show besides."""
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(description, total=total, **fields)


__all__ = ["BarView"]
