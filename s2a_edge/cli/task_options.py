"""What ``pack`` is told to learn: ``--loss`` with ``--classes``, ``--outputs`` and ``--labels``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2a_edge.cli.values import read_labels
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.task_ports import HEAD_LOSSES, REGRESSION_LOSSES


def task_options(
    loss: str, classes: int | None, outputs: int | None, labels: Path | None
) -> dict[str, Any]:
    """Fields ``loss``, ``classes`` and ``labels`` of :class:`s2a_edge.pack.options.PackOptions`.

    Args:
        loss: as given.
        classes: of ``--classes``: how many classes or labels.
        outputs: of ``--outputs``: how many numbers.
        labels: of ``--labels``: a file of names.

    Raises:
        UsageError: the loss is unknown, its count is missing, given by the other flag, or other
            than the number of names.
    """
    if loss not in HEAD_LOSSES:
        todo = "choose one of them"
        raise _wrong("--loss", " or ".join(HEAD_LOSSES), repr(loss), todo)
    regression = loss in REGRESSION_LOSSES
    flag, other = ("--outputs", "--classes") if regression else ("--classes", "--outputs")
    count, useless = (outputs, classes) if regression else (classes, outputs)
    if useless is not None:
        raise _wrong(other, f"{flag} with --loss {loss}", str(useless), f"use {flag}")
    names = read_labels(labels) if labels else None
    if names is None and count is None:
        todo = f"add --labels FILE with one name a line, or {flag} N"
        raise _wrong("--labels", "what to learn", f"neither --labels nor {flag}", todo)
    if names is not None and count not in (None, len(names)):
        expected = f"{len(names)}, as many as {labels} has lines"
        raise _wrong(flag, expected, str(count), f"leave {flag} off")
    return {"loss": loss, "classes": count, "labels": names or ()}


def _wrong(where: str, expected: str, got: str, todo: str) -> UsageError:
    return UsageError(where=where, expected=expected, got=got, todo=todo)
