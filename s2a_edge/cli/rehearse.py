"""``s2a-edge rehearse``: one graph in a process like that of ``train``, for ``pack`` to measure."""

from __future__ import annotations

import typer


def rehearse() -> None:
    """Run one graph as a request on stdin says; the answer goes to stdout."""
    from s2a_edge.run.rehearsal import main

    raise typer.Exit(main())
