"""From an adapted backbone to an allocator: probe, codebooks, sensitivities."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from s2a_edge.pack.adapt import Adapted
from s2a_edge.pack.allocation.allocate import Allocator
from s2a_edge.pack.allocation.codebooks import measured_codebooks
from s2a_edge.pack.allocation.gauge import Gauge
from s2a_edge.pack.allocation.options import Codecs
from s2a_edge.pack.allocation.probe import make_probe
from s2a_edge.pack.allocation.sensitivity import Feeds, Sensitivity, measure
from s2a_edge.pack.calibration import Samples
from s2a_edge.pack.precision import Attention
from s2a_edge.pack.recompute import Recompute
from s2a_edge.pack.saving import SavedValue
from s2a_edge.spec.task_ports import Loss

PROBE_BATCH = 4
"""Samples that are measured together; their gradients add up as in training."""
_MOST_SAMPLES = 8


@dataclass(frozen=True)
class Measured:
    """An allocator and what it cost.

    Attributes:
        allocator: makes allocations for any number of bytes.
        samples: that sensitivities were measured on.
        seconds: that this took.
        sensitivity: what was measured.
        leaves: of recomputable probabilities, the keys of what they come from.
    """

    allocator: Allocator
    samples: int
    seconds: float
    sensitivity: Sensitivity = field(repr=False)
    leaves: Mapping[str, tuple[str, ...]] = field(repr=False)

    def of_step(self, saved: Sequence[SavedValue], batch: int, attention: Attention,
                trainables: Collection[str]) -> Measured:
        """The same for a step of another micro-batch or depth.

        Args:
            saved: what the uncompressed step saves.
            batch: its samples.
            attention: whether probabilities must be stored or recomputed.
            trainables: names of those that it has.
        """
        keys = {s.key for s in saved}
        known = self.sensitivity.among(keys, trainables)
        leaves = {p: ls for p, ls in self.leaves.items() if p in keys}
        return replace(self, allocator=Allocator(known, saved, leaves, batch, attention))


def measured_allocator(adapted: Adapted, saved: tuple[SavedValue, ...], batch: int,
                       samples: Samples, *, loss: Loss, threads: int, attention: Attention,
                       wholes: Sequence[ir.Model], recompute: Recompute = "none",
                       on_stage: Callable[[str, str], None]) -> Measured:
    """Measures what each code does to the gradients of a backbone.

    Args:
        adapted: for a small batch.
        saved: what a step of ``batch`` samples saves; bytes are counted in it.
        batch: samples of that step.
        samples: what to measure on; at most 8 of them are used.
        loss: of the task.
        threads: of one operator.
        attention: whether probabilities must be stored or recomputed.
        wholes: models that hold the weights of which ``adapted`` has slices.
        recompute: what is computed again.
        on_stage: told what is done.
    """
    started_s = time.monotonic()
    probe = make_probe(adapted, loss, recompute)
    initial = {t.name: t.initial for t in adapted.trainables}
    count = min(samples.batches(probe.batch), max(1, _MOST_SAMPLES // probe.batch))

    def batches() -> Iterator[Feeds]:
        for number in range(count):
            yield samples.feeds(probe.model, initial, number)

    on_stage("sensitivities", f"of {len(probe.points)} saved values, on {count * probe.batch} "
             f"samples ({samples.source})")
    with tempfile.TemporaryDirectory(prefix="s2a-sensitivity-") as folder:
        gauge = Gauge(probe, Path(folder), threads, wholes)
        codecs = Codecs(measured_codebooks(gauge, batches()))
        sensitivity = measure(gauge, batches(), codecs, probe.batch)
        allocator = Allocator(sensitivity, saved, gauge.leaves, batch, attention)
        leaves = dict(gauge.leaves)
    return Measured(allocator, count * probe.batch, time.monotonic() - started_s, sensitivity,
                    leaves)


__all__ = ["PROBE_BATCH", "Measured", "measured_allocator"]
