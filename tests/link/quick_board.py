"""Stands in for the board's Python: the same agent, but asking the board costs nothing.

``quick_board.py -m MODULE ARGUMENT...`` and ``quick_board.py -c CODE``, as Python itself.
"""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

from s2a_edge.link import install
from s2a_edge.link.board_process import BoardFacts, own_environment

FACTS = BoardFacts(None, "3.10.12", "1.23.0", ("CPUExecutionProvider",), None, None, 6)


def write_wrapper(path: Path) -> Path:
    """A program at ``path`` that runs this file."""
    environment = shlex.quote(own_environment()["PYTHONPATH"])
    here = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)}"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={environment} exec {here} "$@"\n')
    path.chmod(0o755)
    return path


def main() -> None:
    quick = install.BoardChecks(detect=lambda: FACTS, rehearse=lambda *_: 7.0)
    install.BoardChecks = lambda: quick  # type: ignore[assignment,misc]  # a factory of the same
    mode, what, *arguments = sys.argv[1:]
    sys.argv = [what, *arguments]
    if mode == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "board"})


if __name__ == "__main__":
    main()
