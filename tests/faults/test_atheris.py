"""Coverage-guided fuzzing, where atheris is installed (``pip install atheris``)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from s2a_edge.link.board_process import own_environment


@pytest.mark.faults_long
def test_readers_of_bytes(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, which has no wheels for every Python")
    harness = Path(__file__).with_name("atheris_link.py")
    limits = ["-runs=200000", "-max_total_time=90", "-rss_limit_mb=1024", "-timeout=10"]
    done = subprocess.run(
        [sys.executable, str(harness), *limits, f"-artifact_prefix={tmp_path}/", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=own_environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
