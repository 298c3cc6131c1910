"""The one tree of errors that s2a-edge raises on purpose.

::

    S2AError
    ├── UsageError                   exit 2   a flag or an argument cannot be used as given
    ├── SourceError                  exit 1   a backbone cannot be read or compiled
    │   └── UnsupportedOperatorError          operators without a rule, all of them at once
    ├── BundleError                  exit 1   a bundle is malformed
    │   ├── BundleIntegrityError              bytes differ from what the manifest promises
    │   └── SignatureError                    unsigned, or signed by nobody who is trusted
    ├── DeviceError                  exit 1   a device profile or a board cannot be used
    ├── BudgetError                  exit 3   it does not fit; ``missing_bytes`` says by how much
    ├── DataError                    exit 1   images, arrays or labels cannot be used
    ├── CheckpointError              exit 1   a run folder or checkpoint cannot be used
    ├── NonFiniteLossError           exit 1   training diverged; the last checkpoint is kept
    ├── StorageError                 exit 1   no space, read-only, permission
    ├── LinkError                    exit 1   the way to a board failed
    └── InternalError                exit 1   our own bug, found by one of our own checks

Every error says *where* it happened, what was *expected*, what it *got* and what *to do*.
"""

from __future__ import annotations

from collections.abc import Sequence


class S2AError(Exception):
    """Base of all errors a user may meet.

    Args:
        where: file, flag, node or step at which it happened.
        expected: what would have been right.
        got: what was found instead.
        todo: the next thing the user can do.
    """

    exit_code: int = 1

    def __init__(self, *, where: str, expected: str, got: str, todo: str) -> None:
        self.where = where
        self.expected = expected
        self.got = got
        self.todo = todo
        super().__init__(f"{where}: expected {expected}, got {got}; {todo}")

    def as_dict(self) -> dict[str, object]:
        """The error as JSON-ready fields, for ``--json``."""
        return {
            "error": type(self).__name__,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "todo": self.todo,
            "exit_code": self.exit_code,
        }


class UsageError(S2AError):
    """A flag or an argument cannot be used as given."""

    exit_code = 2


class SourceError(S2AError):
    """A backbone cannot be read, captured or compiled."""


class UnsupportedOperatorError(SourceError):
    """Operators without a differentiation rule; lists all of them at once."""


class BundleError(S2AError):
    """A bundle is malformed."""


class BundleIntegrityError(BundleError):
    """The bytes of a bundle are not those that its manifest promises."""


class SignatureError(BundleError):
    """A bundle is unsigned, or signed by nobody who is trusted."""


class DeviceError(S2AError):
    """A device profile or a board cannot be used."""


class BudgetError(S2AError):
    """The work does not fit the memory budget.

    Args:
        missing_bytes: how much is missing, in bytes; 0 where that cannot be known.
        changes: what would help, each with its effect; JSON-ready.
    """

    exit_code = 3

    def __init__(
        self,
        *,
        where: str,
        expected: str,
        got: str,
        todo: str,
        missing_bytes: int = 0,
        changes: Sequence[dict[str, object]] = (),
    ) -> None:
        super().__init__(where=where, expected=expected, got=got, todo=todo)
        self.missing_bytes = missing_bytes
        self.changes = tuple(changes)

    def as_dict(self) -> dict[str, object]:
        """As :meth:`S2AError.as_dict`, with ``missing_bytes``, and ``changes`` if there are any."""
        changes = {"changes": list(self.changes)} if self.changes else {}
        return {**super().as_dict(), "missing_bytes": self.missing_bytes, **changes}


class DataError(S2AError):
    """Images, arrays or labels cannot be used."""


class CheckpointError(S2AError):
    """A run folder or a checkpoint cannot be used."""


class NonFiniteLossError(S2AError):
    """The loss or a gradient stopped being finite; the last checkpoint is kept."""


class StorageError(S2AError):
    """The file system refused: no space, read-only, no permission."""


class LinkError(S2AError):
    """The way to a board failed."""


class InternalError(S2AError):
    """One of our own checks failed: a bug in s2a-edge."""
