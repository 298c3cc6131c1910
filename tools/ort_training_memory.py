"""Peak memory of training steps through the On-Device Training API, in its environment.

    $PYTHON -m tools.ort_training_memory artifacts [--reuse]

Anonymous memory (RssAnon) of a fresh process, sampled by a second one during two training steps,
less what it was before the first. Without an arena and with freed memory given back at once, so
that the figure is what is alive. ``--reuse``: as the C interface has it, which cannot turn off that
buffers are kept for later values. The order of execution is the runtime's default.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.ort_training_environment import import_without_torch
from tools.ort_training_train import session_options

import_without_torch()
from onnxruntime.training.api import CheckpointState, Module  # noqa: E402

# Read by the C library when a process starts.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--reuse", action="store_true")
    options = parser.parse_args()
    if any(name not in os.environ for name in _MALLOC):
        os.execve(sys.executable, [sys.executable, "-m", "tools.ort_training_memory",
                                   *sys.argv[1:]], {**os.environ, **_MALLOC})
    about = json.loads((options.artifacts / "artifacts.json").read_text(encoding="utf-8"))
    settings = session_options(about, 1)
    settings.enable_cpu_mem_arena = False
    settings.enable_mem_reuse = options.reuse
    state = CheckpointState.load_checkpoint(options.artifacts / "checkpoint")
    module = Module(options.artifacts / "training_model.onnx", state, session_options=settings)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in about["training_inputs"].values()]
    before, stop, most = anonymous_kib(os.getpid()), multiprocessing.Event(), \
        multiprocessing.Value("l", 0)
    sampler = multiprocessing.Process(target=sample, args=(os.getpid(), stop, most))
    sampler.start()
    time.sleep(0.2)
    for _ in range(2):
        module(*inputs)
    stop.set()
    sampler.join()
    print(f"{options.artifacts.name}: peak {(most.value - before) / 1024:.1f} MiB, planned "
          f"{about['planned_liveness_peak_bytes'] / 2**20:.1f}, saved "
          f"{about['saved_bytes'] / 2**20:.1f}")
    return 0


def anonymous_kib(process: int) -> int:
    """RssAnon."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def sample(process: int, stop: Any, most: Any) -> None:
    """Until told to stop."""
    while not stop.is_set():
        most.value = max(most.value, anonymous_kib(process))


if __name__ == "__main__":
    sys.exit(main())
