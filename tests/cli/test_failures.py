"""Errors leave as one line and an exit code; bugs leave as tracebacks."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from s2a_edge.cli.failures import FailureGroup, as_storage_error, one_line
from s2a_edge.cli.output import Json
from s2a_edge.spec import errors


def _app(action: Callable[[], None]) -> typer.Typer:
    app = typer.Typer(cls=FailureGroup, pretty_exceptions_enable=False)

    @app.callback()
    def _root() -> None:
        """A group, as the real one."""

    @app.command()
    def run(as_json: Json = False) -> None:
        """Fail as asked."""
        action()

    return app


def _raise(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def _error(kind: type[errors.S2AError]) -> errors.S2AError:
    return kind(where="--bits", expected="4\nor 8", got="5", todo="correct the flag")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.BundleError, 1),
        (errors.BudgetError, 3),
        (errors.NonFiniteLossError, 1),
    ],
)
def test_our_errors_are_one_line_and_their_exit_code(
    kind: type[errors.S2AError], code: int
) -> None:
    done = CliRunner().invoke(_app(_raise(_error(kind))), ["run"])
    assert done.exit_code == code
    assert done.stderr == "error: --bits: expected 4 or 8, got 5; correct the flag\n"
    assert done.stdout == ""


def test_json_has_the_error_as_an_object() -> None:
    error = errors.BudgetError(where="a", expected="b", got="c", todo="d", missing_bytes=7)
    done = CliRunner().invoke(_app(_raise(error)), ["run", "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout) == {
        "error": "BudgetError",
        "where": "a",
        "expected": "b",
        "got": "c",
        "todo": "d",
        "exit_code": 3,
        "missing_bytes": 7,
    }


def test_interrupt_is_130() -> None:
    done = CliRunner().invoke(_app(_raise(KeyboardInterrupt())), ["run"])
    assert done.exit_code == 130
    assert done.stderr == "interrupted\n"


def test_no_space_is_a_storage_error() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "out/last.safetensors")
    done = CliRunner().invoke(_app(_raise(error)), ["run"])
    assert done.exit_code == 1
    assert done.stderr == (
        "error: out/last.safetensors: expected space on the file system, "
        "got no space left on device; free some space, or write elsewhere\n"
    )


def test_bugs_keep_their_traceback() -> None:
    bug = ZeroDivisionError("a bug")
    done = CliRunner().invoke(_app(_raise(bug)), ["run"])
    assert done.exception is bug


def test_other_system_errors_are_not_disguised() -> None:
    assert as_storage_error(OSError(errno.ECHILD, "No child processes")) is None


def test_one_line_joins_what_spans_lines() -> None:
    assert "\n" not in one_line(_error(errors.UnsupportedOperatorError))
