"""What must hold of a board's folder before anything is written there.

It may be a card that somebody else prepared, worked on by an administrator of this machine.
Standard library only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s2a_edge.spec.errors import StorageError
from s2a_edge.spec.storage import storage_errors

TRUST = "trust"
# Files are written and removed here; runs and photos may be links to a larger disk.
_OWN = ("blobs", "incoming", "releases", "marks", "runtimes", "outgoing")


def require_own_folders(root: Path) -> None:
    """Refuse a board's folder whose parts lead elsewhere.

    Raises:
        StorageError: names the link.
    """
    for name in _OWN:
        with storage_errors(root / name, "to look at the board's folder"):
            try:
                status = (root / name).lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
        if not stat.S_ISDIR(status.st_mode):
            raise StorageError(
                where=str(root / name),
                expected="a folder, or none",
                got="a link" if stat.S_ISLNK(status.st_mode) else "something else",
                todo="move it away; `mount --bind` brings a larger disk there",
            )


def asks_for_signatures(root: Path) -> bool:
    """Whether a board has a place for trusted keys: then nothing unsigned goes there.

    A link that leads nowhere and a folder that cannot be entered count as one, too.
    """
    try:
        os.lstat(root / TRUST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
