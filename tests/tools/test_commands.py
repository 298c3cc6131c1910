"""Every command in tools/ starts: what it imports is there, and its options are declared."""

from __future__ import annotations

import importlib
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
_SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TOOLS.glob("*.py"))}
COMMANDS = [name for name, text in _SOURCES.items()
            if "argparse" in text and '__name__ == "__main__"' in text]
# The rest is started by a command, with its task as JSON, or only imported.
PARTS = [name for name in _SOURCES if name not in COMMANDS]
# Run in an environment of onnxruntime-training, which has the same import name as onnxruntime.
_OF_THE_TRAINING_API = {"ort_training_gradients", "ort_training_memory", "ort_training_train"}


def _require_packages(name: str) -> None:
    if name in _OF_THE_TRAINING_API and find_spec("onnxruntime.training") is None:
        pytest.skip("takes onnxruntime-training, which has an environment of its own")


def test_there_are_commands() -> None:
    assert {"accuracy", "bench_step", "conformance"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_its_help(name: str, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    _require_packages(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_can_be_imported(name: str) -> None:
    _require_packages(name)
    importlib.import_module(f"tools.{name}")
