"""A process of ours, watched from outside: the most memory that it held while it ran."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.pack.rehearse import subprocess_environment
from s2a_edge.run.process_memory import read_sizes

_POLL_S = 0.02


@dataclass(frozen=True)
class Watched:
    """How it ended.

    Attributes:
        exit_code: its status.
        said: what it wrote to stderr.
        rss_bytes: the most that was resident, mapped files and libraries included.
        pss_bytes: the same, pages that others map too counted in proportion.
    """

    exit_code: int
    said: str
    rss_bytes: int
    pss_bytes: int


def watch(command: Sequence[str]) -> Watched:
    """Runs ``command`` with this very s2a-edge; its memory is read every 20 ms."""
    rss_bytes = pss_bytes = 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=subprocess_environment(), stderr=errors)
        while process.poll() is None:
            sizes = read_sizes(Path(f"/proc/{process.pid}/smaps_rollup"))
            rss_bytes = max(rss_bytes, sizes.get("Rss", 0))
            pss_bytes = max(pss_bytes, sizes.get("Pss", 0))
            time.sleep(_POLL_S)
        errors.seek(0)
        return Watched(process.returncode, errors.read().strip(), rss_bytes, pss_bytes)
