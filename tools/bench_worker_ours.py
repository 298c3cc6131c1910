"""One process of ``bench_step``: our training step from a bundle. Prints one JSON line."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from s2a_edge import Bundle, Trainer
from s2a_edge.run.device_memory import cuda_runtime
from s2a_edge.run.process_memory import read_memory


def main() -> None:
    """Runs one warm-up step and ``steps`` timed ones."""
    request = json.loads(sys.argv[1])
    bundle = Bundle.open(request["bundle"], verify=False)
    spec = bundle.manifest.inputs[0]
    engine = request["engine"]
    # The reading makes the context, which is not part of the figure.
    free_bytes = cuda_runtime().memory().free_bytes if engine == "cuda" else 0
    trainer = Trainer(bundle, micro_batch=request["batch"], threads=request["threads"],
                      provider=engine)
    train = bundle.manifest.graphs.train[0]  # in the form that was chosen
    rng = np.random.default_rng(0)
    images = rng.standard_normal((request["batch"], *spec.shape), dtype=np.float32)
    labels = rng.integers(request["classes"], size=request["batch"])
    trainer.step({spec.name: images}, labels, lr=1e-3)
    step_ms, anon, file = [], 0, 0
    for _ in range(request["steps"]):
        start = time.perf_counter()
        trainer.step({spec.name: images}, labels, lr=1e-3)
        step_ms.append(1000 * (time.perf_counter() - start))
        now = read_memory()
        file = max(file, now.file_bytes)
    peak = read_memory().peak_rss_bytes
    anon = peak - file  # the kernel keeps one peak; file pages do not shrink between steps
    print(json.dumps({
        "step_ms": step_ms, "kernels": "native" if trainer.native else "portable",
        "peak_bytes": peak, "anon_bytes": anon, "file_bytes": file,
        # Arenas keep what they have taken, so what is gone at the end was the peak.
        "device_bytes": free_bytes - cuda_runtime().memory().free_bytes if free_bytes else None,
        "arena_measured_bytes": train.evidence.arena_measured_bytes,
        "plan": {"arena_bytes": train.plan.arena_bytes, "saved_bytes": train.plan.saved_bytes,
                 "liveness_peak_bytes": train.plan.liveness_peak_bytes}}))


if __name__ == "__main__":
    main()
