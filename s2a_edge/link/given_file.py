"""Files that a board gives to whoever is at the other end of its line. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from s2a_edge.spec.errors import UsageError

_READABLE = ("runs", "outgoing")


def open_below(root: Path, path: str) -> BinaryIO:
    """A file of a run, or one made to be fetched, for reading.

    Raises:
        UsageError: it is outside of those folders, a link, or not there.
    """
    parts = Path(path).parts
    try:
        if parts[:1] and parts[0] in _READABLE and ".." not in parts and "\0" not in path:
            file = root / path
            inside = file.resolve().parent == (root.resolve() / path).parent
            if inside and file.is_file() and not file.is_symlink():
                return file.open("rb")
    except OSError:
        pass  # the same answer for whatever cannot be opened
    raise UsageError(
        where=ascii(path[:100]),
        expected=f"a file below {' or '.join(_READABLE)}",
        got="none that can be given",
        todo="use the same version of s2a-edge on both sides",
    )


__all__ = ["open_below"]
