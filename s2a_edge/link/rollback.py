"""Back to the release before: asked for, or by itself after too many failed starts."""

from __future__ import annotations

from dataclasses import dataclass

from s2a_edge.link.releases import Releases
from s2a_edge.spec.errors import LinkError


@dataclass(frozen=True)
class RolledBack:
    """Hashes of the release that is in use now and of the one that was."""

    current: str
    previous: str


def roll_back(releases: Releases, *, reason: str | None = None) -> RolledBack:
    """Use the previous release again; hold the lock.

    Args:
        releases: of the board.
        reason: why the current one is not to be used; None: somebody asked, nothing is wrong.

    Raises:
        LinkError: there is no other release, or it is known to be bad.
        StorageError: the file system refused.
    """
    current, previous = releases.current(), releases.previous()
    if current is None or previous is None or current == previous:
        raise _nothing(releases, "no other release")
    bad = releases.mark(previous).bad
    if bad is not None and reason is not None:
        raise _nothing(releases, f"release {previous[:12]}, which failed itself ({bad})")
    if reason is not None:
        releases.mark_bad(current, reason)
    releases.switch(previous)
    return RolledBack(previous, current)


def _nothing(releases: Releases, got: str) -> LinkError:
    return LinkError(
        where=str(releases.root),
        expected="a previous release to go back to",
        got=got,
        todo="flash a bundle that works",
    )
