"""The command line as a whole: help, usage errors, options that every command has."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import s2a_edge
from s2a_edge.cli import app

COMMANDS = ("pack", "check", "inspect", "train", "eval", "export")
DEVICE_COMMANDS = ("list", "show", "detect")


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{s2a_edge.__version__}\n")


@pytest.mark.parametrize(
    "command", [*([name] for name in COMMANDS), *(["devices", name] for name in DEVICE_COMMANDS)]
)
def test_every_command_has_help_json_and_quiet(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "--json" in done.stdout
    assert "--quiet" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["bake"], ["check"], ["train", "x.s2a"], ["check", "x", "--frobnicate"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "Error: " in done.stderr
    assert done.stdout == ""


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s2a_edge", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{s2a_edge.__version__}\n"
