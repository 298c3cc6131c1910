"""What ``pack`` is told to learn: ``--loss`` with ``--classes``, ``--outputs`` and ``--labels``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2a_edge.cli.values import read_labels
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.task_ports import HEAD_LOSSES, REGRESSION_LOSSES

_OWN = "output:"


def task_options(
    loss: str, classes: int | None, outputs: int | None, labels: Path | None
) -> dict[str, Any]:
    """Fields of :class:`s2a_edge.pack.options.PackOptions` that say what is learned.

    Args:
        loss: as given: a name, or ``output:NAME``.
        classes: of ``--classes``: how many classes or labels.
        outputs: of ``--outputs``: how many numbers.
        labels: of ``--labels``: a file of names.

    Raises:
        UsageError: the loss is unknown, its count is missing, given by the other flag, or other
            than the number of names.
    """
    if loss.startswith(_OWN) and len(loss) > len(_OWN):
        return {"loss": "output", "loss_output": loss.removeprefix(_OWN), **_no_head(
            loss, classes, outputs, labels)}
    if loss not in HEAD_LOSSES:
        todo = "choose one of them"
        raise _wrong("--loss", f"{', '.join(HEAD_LOSSES)} or {_OWN}NAME", repr(loss), todo)
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


def _no_head(loss: str, classes: int | None, outputs: int | None, labels: Path | None,
             ) -> dict[str, Any]:
    """A graph that is its own loss has nothing to count or name."""
    given = {"--classes": classes, "--outputs": outputs, "--labels": labels}
    for flag, value in given.items():
        if value is not None:
            raise _wrong(flag, f"none with --loss {loss}", str(value), f"leave {flag} off")
    return {}


def _wrong(where: str, expected: str, got: str, todo: str) -> UsageError:
    return UsageError(where=where, expected=expected, got=got, todo=todo)
