"""Goes on with a smaller micro-batch in a process of its own, where this one cannot change to it.

Before 1.23 onnxruntime keeps the first arena of a process for good. The process image is replaced,
so that whoever waits for this process, a terminal or a service manager, goes on waiting for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def arguments_again(arguments: Sequence[str], micro_batch: int) -> list[str]:
    """The same command line, resumed with another micro-batch; of an option the last counts."""
    return [*arguments, "--resume", "--micro-batch", str(micro_batch)]


def train_again(micro_batch: int) -> NoReturn:
    """Replace this process by one that resumes the run."""
    sys.stdout.flush()
    sys.stderr.flush()
    again = arguments_again(sys.argv[1:], micro_batch)
    os.execv(sys.executable, [sys.executable, "-m", "s2a_edge", *again])
