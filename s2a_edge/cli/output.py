"""What every command prints with: results on stdout, notes and progress on stderr.

``--json`` prints one JSON object and nothing else on stdout; ``--quiet`` leaves out notes, progress
and tables, but neither JSON nor errors.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from s2a_edge.spec.strict_json import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_JSON_KEY = "s2a_edge.json"
_WIDTH_OF_FILES = 160  # columns where no terminal says how wide it is: logs keep whole rows


def _remember_json(ctx: typer.Context, wanted: bool) -> bool:
    ctx.meta[_JSON_KEY] = wanted
    return wanted


# Eager: an error while the other options are read is reported as JSON too.
Json = Annotated[
    bool,
    typer.Option("--json", callback=_remember_json, is_eager=True, help="Print one JSON object."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print neither tables nor progress, only errors.")
]


def wants_json(ctx: typer.Context) -> bool:
    """Whether the command that ``ctx`` runs was given ``--json``."""
    return bool(ctx.meta.get(_JSON_KEY, False))


class Output:
    """The printer of one command.

    Args:
        as_json: one JSON object instead of tables.
        quiet: no tables, notes or progress.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet

    @property
    def shows_tables(self) -> bool:
        """Whether a person reads stdout."""
        return not (self.as_json or self.quiet)

    @property
    def draws(self) -> bool:
        """Whether stdout is a terminal, where bars can be seen."""
        return self.shows_tables and sys.stdout.isatty()

    def result(self, value: object) -> None:
        """Print ``value`` as JSON if that was asked for; dataclasses and paths are converted."""
        if self.as_json:
            print(json.dumps(plain(value), ensure_ascii=False, indent=1, default=str))  # str: paths

    def show(self, *parts: str | Table) -> None:
        """Print lines and tables for a person."""
        if self.shows_tables:
            console = _console(sys.stdout)
            for part in parts:
                if not isinstance(part, str) and part.title:
                    # A title inside the table would be wrapped to the table's width.
                    console.print(part.title, soft_wrap=True)
                    part.title = None
                console.print(part, soft_wrap=isinstance(part, str))

    def note(self, line: str) -> None:
        """Print what is going on, to stderr, so that stdout holds results only."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def live(self) -> Console | None:
        """A console for a progress bar on stderr; None where no terminal would show it."""
        return _console(sys.stderr) if sys.stderr.isatty() and not self.quiet else None


def stage_notes(output: Output) -> Callable[[str, str], None]:
    """What long work calls with the name and a detail of each stage: noted with seconds so far."""
    started = time.monotonic()

    def note(stage: str, detail: str) -> None:
        output.note(f"[{time.monotonic() - started:6.1f} s] {stage}: {detail}")

    return note


def table(title: str, columns: Sequence[str], *, right: Sequence[str] = ()) -> Table:
    """An empty table; columns named in ``right`` are aligned to the right (figures)."""
    from rich import box
    from rich.table import Table

    made = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def _console(stream: object) -> Console:
    from rich.console import Console

    is_terminal = getattr(stream, "isatty", lambda: False)()
    return Console(
        file=stream,  # type: ignore[arg-type]  # sys.stdout is a TextIO, which IO[str] accepts
        width=None if is_terminal else _WIDTH_OF_FILES,
        markup=False,  # names hold brackets
        highlight=False,
    )
