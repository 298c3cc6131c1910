"""What every way to a board can do; the rest of ``flash`` and ``pull`` is made of it.

A transport is one file with a class of these few methods, and passes the shared suite of
``tests/link/contract.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from s2a_edge.link.blobs import Blob
from s2a_edge.link.messages import OnNote, Request
from s2a_edge.spec.errors import LinkError

OnBytes = Callable[[int], None]
"""Told how many more bytes of payload have arrived on the other side."""


@dataclass(frozen=True)
class Outgoing:
    """A file to send: its content's name, where it lies, and how much the board has already."""

    blob: Blob
    path: Path
    offset: int = 0


@dataclass(frozen=True)
class Incoming:
    """A file to fetch: its path below the board's folder, and what its content must be."""

    path: str
    blob: Blob
    target: Path

    def require_room(self, came_bytes: int) -> None:
        """Refuse more than was announced: whoever sends must not fill this machine's disk.

        Raises:
            LinkError: ``came_bytes`` are more than the file has.
        """
        if came_bytes > self.blob.size_bytes:
            raise LinkError(
                where=self.path,
                expected=f"{self.blob.size_bytes} bytes, as announced",
                got="more: the run goes on and changed it, or the board is not to be trusted",
                todo="pull again",
            )


class Transport(ABC):
    """A way to one board; use it in a ``with`` block.

    Attributes:
        target: as the user gave it, for messages.
        notify: told in a line what happens to the way itself.
    """

    target: str
    notify: OnNote = staticmethod(lambda text: None)

    @abstractmethod
    def call(self, request: Request, on_note: OnNote) -> Any:
        """Have the board carry out a request of :mod:`s2a_edge.link.messages`.

        Raises:
            S2AError: the board's error.
            LinkError: the board cannot be reached, or has nothing that understands the request.
        """

    @abstractmethod
    def send(self, files: Sequence[Outgoing], on_bytes: OnBytes) -> None:
        """Bring files to ``incoming/<hash>``, each from its offset on.

        Raises:
            LinkError: the way broke; what has arrived stays there.
            StorageError: the board has no space, or a file cannot be read.
        """

    @abstractmethod
    def fetch(self, files: Sequence[Incoming], on_bytes: OnBytes) -> None:
        """Bring files from the board; their hashes are compared by the caller.

        Raises:
            LinkError: the way broke.
        """

    def bytes_per_s(self) -> float | None:
        """Payload that goes through in a second; None where nobody knows before trying."""
        return None

    def close(self) -> None:
        """Let go of the board."""
        return None

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
