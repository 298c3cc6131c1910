"""How a failure leaves the program: one clear line and its exit code, or a traceback for a bug."""

from __future__ import annotations

import errno
import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from s2a_edge.cli.output import wants_json
from s2a_edge.spec.errors import S2AError, StorageError

if TYPE_CHECKING:
    # typer ships its own click since 0.26; before that it was the package of that name.
    Context = Any

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_STORAGE_ADVICE = {
    errno.ENOSPC: ("space on the file system", "free some space, or write elsewhere"),
    errno.EDQUOT: ("space within the quota", "free some space, or write elsewhere"),
    errno.EROFS: ("a file system that can be written", "write elsewhere"),
    errno.EACCES: ("permission", "check the owner and mode of the path"),
    errno.EPERM: ("permission", "check the owner and mode of the path"),
}


class FailureGroup(TyperGroup):
    """Runs a command; errors that were raised on purpose become a line and an exit code."""

    def invoke(self, ctx: Context) -> Any:
        """Run the command of ``ctx``.

        Raises:
            typer.Exit: with the error's exit code, or 130 when interrupted.
        """
        try:
            return super().invoke(ctx)
        except S2AError as error:
            _report(ctx, error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            storage = as_storage_error(error)
            if storage is None:
                raise
            _report(ctx, storage)
            raise typer.Exit(storage.exit_code) from error
        except KeyboardInterrupt as interrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


def as_storage_error(error: OSError) -> StorageError | None:
    """The file system's refusals as ours; None for any other error of the system."""
    if error.errno not in _STORAGE_ADVICE:
        return None
    expected, todo = _STORAGE_ADVICE[error.errno]
    got = error.strerror or errno.errorcode[error.errno]
    return StorageError(
        where=str(error.filename or "writing"), expected=expected, got=got.lower(), todo=todo
    )


def one_line(error: S2AError) -> str:
    """``error: where: expected …, got …; todo``, whatever line breaks its parts hold."""
    return "error: " + " ".join(str(error).split())


def _report(ctx: Context, error: S2AError) -> None:
    if wants_json(ctx):
        print(json.dumps(error.as_dict(), ensure_ascii=False))
    print(one_line(error), file=sys.stderr)
