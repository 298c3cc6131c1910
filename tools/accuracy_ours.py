"""One process of ``accuracy``: fine-tuning with a bundle. Prints one JSON line."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from s2a_edge import Bundle, Trainer
from s2a_edge.run.process_memory import read_memory
from s2a_edge.run.report import Progress
from s2a_edge.run.run_folder import METRICS_NAME
from tools.accuracy_task import (
    Outcome,
    Reporter,
    Task,
    evaluation_data,
    read_task,
    start_values,
    training_data,
)


def train(task: Task) -> Outcome:
    """Trains the bundle's trainables and evaluates them."""
    bundle = Bundle.open(task.bundle, verify=False)
    data, test = training_data(task, bundle), evaluation_data(task, bundle)
    trainer = Trainer(bundle, threads=task.threads, seed=task.seed)
    trainer.state.load_parameters(start_values(bundle, task.seed), where="start values")
    report = Reporter(task)

    def on_progress(at: Progress) -> None:
        report.tell(f"epoch {at.epoch} of {at.epochs}, step", at.step, at.steps)

    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        done = trainer.fit(
            data, epochs=task.epochs, lr=task.lr, out=folder, weight_decay=task.weight_decay,
            warmup_epochs=task.warmup_epochs, label_smoothing=task.label_smoothing,
            on_progress=on_progress)
        if done.stopped_by is not None:
            sys.exit(f"error: stopped by {done.stopped_by}")
        metrics = _metrics(Path(folder) / METRICS_NAME)
    start_s = time.monotonic()
    evaluation = trainer.evaluate(test)
    return Outcome(
        configuration=task.configuration, seed=task.seed, top1=evaluation.metrics["top1"],
        test_loss=evaluation.loss, test_images=evaluation.n,
        losses=tuple(m["loss"] for m in metrics if m["kind"] == "step"),
        trained_images=task.epochs * len(data),
        train_s=sum(m["seconds"] for m in metrics if m["kind"] == "epoch"),
        test_s=time.monotonic() - start_s, peak_bytes=read_memory().peak_rss_bytes,
        load_average=os.getloadavg()[1],
        tuned_numbers=sum(t.size_bytes for t in bundle.manifest.trainables) // 4)


def _metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    print(train(read_task()).to_json())
