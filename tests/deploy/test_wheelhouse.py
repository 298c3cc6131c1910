"""``tools/make_wheelhouse``: what it collects is enough to install without a network."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.board_fixture import DEPLOY, install, make_system

TOOL = DEPLOY.parent / "tools/make_wheelhouse"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PATH": "/usr/bin:/bin"}


def make_wheelhouse(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c"), ("out", "3.x"), (".",)])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = make_wheelhouse(*arguments)
    assert done.returncode == 2
    assert done.stderr


@pytest.mark.slow
def test_install_sh_needs_nothing_but_the_folder(tmp_path: Path) -> None:
    """Collected for this machine, installed with the index turned off, then used."""
    wheels = tmp_path / "wheels"
    made = make_wheelhouse(wheels, VERSION, ARCH=platform.machine())
    assert made.returncode == 0, made.stderr
    root = make_system(tmp_path / "system")
    options = ("--wheels", wheels, "--root", root, "--python", sys.executable, "--apply")
    done = install(*options, environment=OFFLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    command = [str(root / "opt/s2a-edge/venv/bin/s2a-edge"), "devices", "detect", "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=OFFLINE)
    assert found.returncode == 0, found.stderr
    assert '"onnxruntime"' in found.stdout
    done = install(*options, environment=OFFLINE)
    assert "none: everything is in place" in done.stdout
