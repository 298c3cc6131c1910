"""``dir:/path``: the board itself, or its mounted card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2a_edge.link.agent import handle
from s2a_edge.link.blobs import CHUNK_BYTES, BlobStore
from s2a_edge.link.install import BoardChecks
from s2a_edge.link.messages import OnNote, Request
from s2a_edge.link.transport import Incoming, OnBytes, Outgoing, Transport
from s2a_edge.spec.storage import storage_errors


class DirTransport(Transport):
    """A folder that this process can write.

    Args:
        root: the board's folder.
        checks: how to ask the board; tests put others in place.
    """

    def __init__(self, root: Path, checks: BoardChecks | None = None) -> None:
        self.target = f"dir:{root}"
        self.root = root
        self._checks = checks

    def call(self, request: Request, on_note: OnNote) -> Any:
        """Carry the request out here."""
        return handle(self.root, request, on_note, self._checks)

    def send(self, files: Sequence[Outgoing], on_bytes: OnBytes) -> None:
        """Copy."""
        store = BlobStore(self.root)
        store.make_folders()
        for outgoing in files:
            with storage_errors(outgoing.path, "to read the bundle"):
                file = outgoing.path.open("rb")
            with file:
                offset = file.seek(outgoing.offset)
                while chunk := file.read(CHUNK_BYTES):
                    offset = store.append(outgoing.blob, offset, chunk)
                    on_bytes(len(chunk))

    def fetch(self, files: Sequence[Incoming], on_bytes: OnBytes) -> None:
        """Copy."""
        for incoming in files:
            with (
                storage_errors(incoming.target, "to copy from the board"),
                (self.root / incoming.path).open("rb") as source,
                incoming.target.open("wb") as target,
            ):
                while chunk := source.read(
                    min(CHUNK_BYTES, incoming.blob.size_bytes - target.tell())
                ):
                    target.write(chunk)
                    on_bytes(len(chunk))
