"""The environment of onnxruntime-training: given by S2A_ORT_TRAINING_PYTHON, or made by pip."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.ort_training_environment import ROOT, environment

Run = Callable[..., str]


@pytest.fixture(scope="session")
def interpreter() -> Path:
    given = os.environ.get("S2A_ORT_TRAINING_PYTHON")
    if given:
        return Path(given)
    try:
        return environment()
    except SystemExit as error:
        pytest.skip(f"no environment of onnxruntime-training: {str(error)[-300:]}")


@pytest.fixture
def run_there(interpreter: Path) -> Run:
    """Runs a module or a script there; its standard output."""

    def run(*arguments: object) -> str:
        done = subprocess.run([str(interpreter), *map(str, arguments)], cwd=ROOT,
                              capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
