"""What a board with trusted keys lets in: the files of a bundle whose signature it has seen.

Without this, whoever reaches the line could fill the disk with files that no install would take.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s2a_edge.link.blobs import Blob
from s2a_edge.link.board_folder import asks_for_signatures
from s2a_edge.spec.errors import SignatureError
from s2a_edge.spec.storage import replacing, storage_errors

_NAME = "offered"
_MAX_BYTES = 65_536


def remember_offered(root: Path, hashes: Iterable[str]) -> None:
    """From now on the files of these hashes, and no others, may be sent."""
    with storage_errors(root, "to make the board's folder"):
        root.mkdir(parents=True, exist_ok=True)
    with replacing(root / _NAME, "to note what was offered") as file:
        file.write("\n".join(sorted(set(hashes))).encode("ascii"))


def require_offered(root: Path, blobs: Iterable[Blob]) -> None:
    """Refuse files that no signed offer named, on a board that has trusted keys.

    Raises:
        SignatureError: one of ``blobs`` was not offered.
    """
    if not asks_for_signatures(root):
        return
    try:
        with (root / _NAME).open("rb") as file:
            known = set(file.read(_MAX_BYTES).decode("ascii", "replace").split())
    except FileNotFoundError:
        known = set()
    for blob in blobs:
        if blob.sha256 not in known:
            raise SignatureError(
                where=f"blob {blob.sha256[:12]}",
                expected="a file of a bundle that somebody trusted has signed",
                got="one that no signed offer names",
                todo="flash a signed bundle",
            )
