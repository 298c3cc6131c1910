"""Samples to micro-batches of one fixed size, grouped into optimizer steps.

An epoch is a sequence of steps of ``batch`` samples each, the last maybe of fewer; a step is a
sequence of micro-batches of exactly ``micro`` rows, the last filled up with rows of zeros. What a
row holds depends on (data set, seed, epoch, index) alone, so an epoch can begin at
any step, and with another ``micro``, and go on as if it had never stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from s2a_edge.run.data.augmentation import epoch_order, sample_rng
from s2a_edge.run.data.dataset import DataSet
from s2a_edge.run.data.dtypes import I64, Row, Targets
from s2a_edge.spec.errors import DataError, UsageError
from s2a_edge.spec.manifest import InputSpec


@dataclass(frozen=True)
class BatchBuffer:
    """The input arrays of one micro-batch, [n, *shape] by name, allocated once."""

    inputs: Mapping[str, Row]

    @classmethod
    def allocate(cls, inputs: Sequence[InputSpec], micro: int) -> BatchBuffer:
        """Zeroed arrays for ``micro`` rows; :func:`input_buffer_bytes` of them."""
        return cls({x.name: np.zeros((micro, *x.shape), dtype=x.dtype) for x in inputs})

    @property
    def rows(self) -> int:
        """How many samples it holds."""
        return min((len(array) for array in self.inputs.values()), default=0)


@dataclass(frozen=True)
class MicroBatch:
    """A filled :class:`BatchBuffer`; valid only until the next one is asked for.

    Attributes:
        inputs: by name, [n, *shape]; zeros in padding rows.
        targets: of the samples alone, [samples, ...]; no rows for padding.
        samples: how many rows are samples; they come first.
        indices: int64 [samples], which samples of the data set they are.
        step: the optimizer step in its epoch, from 0.
        step_indices: int64, the samples of all micro-batches of the step.
        last: whether the step is complete with this micro-batch.
    """

    inputs: Mapping[str, Row]
    targets: Targets
    samples: int
    indices: I64
    step: int
    step_indices: I64
    last: bool

    @property
    def step_samples(self) -> int:
        """Samples in all micro-batches of the step."""
        return len(self.step_indices)


@dataclass(frozen=True)
class _Slot:
    """Which samples go into one micro-batch."""

    indices: I64
    step: int
    step_indices: I64
    last: bool


def input_buffer_bytes(inputs: Sequence[InputSpec], micro: int, *, prefetch: bool = False) -> int:
    """Bytes of the buffers that :func:`batches` fills: two with ``prefetch``, else one."""
    row = sum(int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize for x in inputs)
    return micro * row * (2 if prefetch else 1)


def steps_per_epoch(samples: int, batch: int, *, drop_last: bool = False) -> int:
    """Optimizer steps that an epoch takes; the last may be ragged, unless that one is dropped."""
    return samples // batch if drop_last else -(-samples // batch)


def batches(
    dataset: DataSet,
    batch: int,
    micro: int,
    epoch: int = 0,
    seed: int = 0,
    start_step: int = 0,
    *,
    shuffle: bool = True,
    augment: bool = True,
    prefetch: bool = False,
    drop_last: bool = False,
    buffers: Sequence[BatchBuffer] | None = None,
) -> Iterator[MicroBatch]:
    """The micro-batches of one epoch, from ``start_step`` on.

    Every micro-batch is a view of a buffer that the next ones overwrite: use or copy it before the
    next is asked for. Samples before ``start_step`` are not read. Close the iterator
    (``contextlib.closing``) where it is left early: that ends the prefetching thread.

    Args:
        dataset: where the samples come from.
        batch: samples per optimizer step.
        micro: rows per micro-batch, the size of the graph.
        epoch: counts from 0; with ``seed`` it decides order and augmentation.
        seed: of the run.
        start_step: first step to give, 0..steps_per_epoch.
        shuffle: a new order each epoch; else the data set's.
        augment: random views; else evaluation's.
        prefetch: read one micro-batch ahead, in a thread, into a second buffer.
        drop_last: leave out the samples that do not fill a whole step.
        buffers: reuse these (two with ``prefetch``) instead of allocating; of ``micro`` rows.

    Raises:
        UsageError: ``batch`` or ``micro`` is below 1.
        DataError: ``start_step`` is not in this epoch, or a sample cannot be read.
    """
    slots = _plan(dataset, batch, micro, epoch, seed, start_step, shuffle, drop_last)
    count = 2 if prefetch else 1
    if buffers is None:
        buffers = [BatchBuffer.allocate(dataset.inputs, micro) for _ in range(count)]
    assert len(buffers) >= count and all(x.rows == micro for x in buffers)
    fill = _Filler(dataset, seed, epoch, augment)
    if prefetch:
        return _prefetched(slots, buffers, fill)
    return (fill(slot, buffers[0]) for slot in slots)


def _plan(
    dataset: DataSet,
    batch: int,
    micro: int,
    epoch: int,
    seed: int,
    start_step: int,
    shuffle: bool,
    drop_last: bool,
) -> Iterator[_Slot]:
    """Check the arguments now, make the slots when they are asked for."""
    for name, value in (("batch", batch), ("micro-batch", micro)):
        if value < 1:
            todo = "give a positive number"
            raise UsageError(where=name, expected="1 or more", got=str(value), todo=todo)
    samples = len(dataset)
    steps = steps_per_epoch(samples, batch, drop_last=drop_last)
    if not 0 <= start_step <= steps:
        raise DataError(
            where=f"epoch {epoch}",
            expected=f"a first step from 0 to {steps}, for {samples} samples",
            got=str(start_step),
            todo="resume with the data set and the batch size that the run began with",
        )
    order = epoch_order(samples, seed, epoch) if shuffle else np.arange(samples, dtype=np.int64)
    return _slots(order, batch, micro, range(start_step, steps))


def _slots(order: I64, batch: int, micro: int, steps: range) -> Iterator[_Slot]:
    for step in steps:
        of_step = order[step * batch : (step + 1) * batch]
        for start in range(0, len(of_step), micro):
            last = start + micro >= len(of_step)
            yield _Slot(of_step[start : start + micro], step, of_step, last)


class _Filler:
    """Reads the samples of a slot into a buffer; can be told to stop between two samples."""

    def __init__(self, dataset: DataSet, seed: int, epoch: int, augment: bool) -> None:
        self._dataset = dataset
        self._seed, self._epoch, self._augment = seed, epoch, augment
        self.stop = threading.Event()

    def __call__(self, slot: _Slot, buffer: BatchBuffer) -> MicroBatch:
        samples = len(slot.indices)
        for row, index in enumerate(slot.indices.tolist()):
            if self.stop.is_set():
                break
            # The ellipsis keeps rows of rank 0 writable views.
            out = {name: array[row, ...] for name, array in buffer.inputs.items()}
            rng = sample_rng(self._seed, self._epoch, index) if self._augment else None
            self._dataset.load(index, out, rng)
        for array in buffer.inputs.values():
            array[samples:] = 0
        return MicroBatch(
            buffer.inputs,
            self._dataset.targets[slot.indices],
            samples,
            slot.indices,
            slot.step,
            slot.step_indices,
            slot.last,
        )


def _prefetched(
    slots: Iterator[_Slot], buffers: Sequence[BatchBuffer], fill: _Filler
) -> Iterator[MicroBatch]:
    """Fill one buffer in a thread while the other is in use; errors arrive in their turn."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        try:
            pending: Future[MicroBatch] | None = None
            for number, slot in enumerate(slots):
                ready = pending.result() if pending is not None else None
                # The buffer given out before ``ready`` is free: the caller asked for the next.
                pending = pool.submit(fill, slot, buffers[number % 2])
                if ready is not None:
                    yield ready
            if pending is not None:
                yield pending.result()
        finally:
            fill.stop.set()
