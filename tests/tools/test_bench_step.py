"""Arguments of the step benchmark, and its table with and without a device."""

from __future__ import annotations

from typing import Any

import pytest

from tools.bench_step import _options, _row, _table


def test_engines_have_configurations_of_their_own() -> None:
    assert "ours-4-portable" in _options([]).configurations
    on_cuda = _options(["--engine", "cuda", "--batch", "128"])
    assert {"torch-full-amp", "torch-lora-amp", "ours-4"} <= set(on_cuda.configurations)
    assert on_cuda.batch == 128
    with pytest.raises(SystemExit):
        _options(["--configurations", "torch-full-amp"])
    with pytest.raises(SystemExit):
        _options(["--engine", "cuda", "--configurations", "ours-4-portable"])


@pytest.mark.parametrize(("engine", "device_bytes"), [("cpu", None), ("cuda", 5 * 2**20)])
def test_the_device_is_a_column_on_cuda(engine: str, device_bytes: int | None) -> None:
    run: dict[str, Any] = {"step_ms": [1.0, 3.0], "peak_bytes": 2**20, "anon_bytes": 2**20,
                           "file_bytes": 0, "device_bytes": device_bytes}
    report = {"model": "m", "batch": 1, "machine": "x", "command": "c", "engine": engine,
              "rows": [_row("torch-full", [run, run])]}
    lines = _table(report).splitlines()
    assert ("device MiB" in lines[3]) == (engine == "cuda")
    assert ("| 5.0 |" in lines[5]) == (engine == "cuda")
    assert lines[3].count("|") == lines[4].count("|") == lines[5].count("|")
