"""``serve-serial``, ``flash serial:``, ``pull``, ``links`` as users run them, over a line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from s2a_edge.cli import flash_progress
from s2a_edge.cli.flash_progress import FlashView
from s2a_edge.cli.output import Output
from s2a_edge.link.board_process import own_environment
from s2a_edge.link.flash import Flashing
from tests.link.faulty_line import FaultyLine
from tests.run.toy_bundle import write_samples, write_toy_bundle


def s2a(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2a_edge", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=own_environment()
    )


def test_flash_train_and_pull_over_a_serial_line(tmp_path: Path) -> None:
    bundle, board = write_toy_bundle(tmp_path / "toy"), tmp_path / "board"
    data = write_samples(tmp_path / "t.npz", 8)
    with FaultyLine(tmp_path) as line:
        command = [sys.executable, "-m", "s2a_edge", "serve-serial", str(line.board), str(board)]
        with subprocess.Popen(command, env=own_environment(), stderr=subprocess.PIPE) as server:
            try:
                target = f"serial:{line.host}?baud=921600"
                done = s2a("flash", bundle, target)
                assert done.returncode == 0, done.stderr
                assert "sending 1" in done.stderr and "about 1 s" in done.stderr
                assert "board: health check" in done.stderr
                train = ("train", "{bundle}", "--data", data, "--epochs", 1, "--out", "{runs}/n")
                done = s2a("start", board, "--", sys.executable, "-m", "s2a_edge", *train)
                assert done.returncode == 0, done.stderr
                pulled: dict[str, Any] = json.loads(
                    s2a("pull", target, "n", "--out", tmp_path / "n", "--json").stdout
                )
                assert "last.safetensors" in pulled["files"]
                done = s2a("links", target)
                assert " of " in done.stdout  # memory
            finally:
                server.terminate()
    assert (tmp_path / "n" / "run.json").is_file()


def test_the_bar_shows_bytes_rate_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    monkeypatch.setattr(Output, "live", lambda self: console)
    with FlashView(Output(as_json=False, quiet=False)) as view:
        view.update(Flashing("sending", 0, 2**21))
        view.update(Flashing("sending", 2**20, 2**21))
        view.update(Flashing("health check"))
    shown = console.export_text()
    assert "sending" in shown
    assert "/2.0 MiB" in shown
    assert "health check" in shown
    assert flash_progress.estimate(Flashing("fetching", 0, 2**20)) == "fetching 1.0 MiB"


def test_the_log_of_a_long_transfer_tells_rate_and_time(capfd: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    with FlashView(Output(as_json=False, quiet=False), lambda: now_s) as view:
        for second in range(101):
            now_s = float(second)
            view.update(Flashing("sending", second * 10_240, 1_024_000, 0, 100.0))
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "sending 1000.0 KiB, about 2 min"
    assert lines[1] == "sending: 10 % of 1000.0 KiB, 10.0 KiB/s, about 90 s left"
    assert lines[-1] == "sending: 90 % of 1000.0 KiB, 10.0 KiB/s, about 10 s left"
    assert len(lines) == 10


def test_the_log_is_one_line_a_phase(capfd: pytest.CaptureFixture[str]) -> None:
    with FlashView(Output(as_json=False, quiet=False)) as view:
        view.update(Flashing("sending", 0, 0))
        view.update(Flashing("hashes"))
        view.update(Flashing("sending", 0, 2**20, 2**20, 3.0))
        view.update(Flashing("sending", 5, 2**20, 2**20, 3.0))
    assert capfd.readouterr().err.splitlines() == [
        "nothing to send: the board has all of it",
        "board: hashes",
        "sending 1.0 MiB (1.0 MiB are there), about 3 s",
    ]
