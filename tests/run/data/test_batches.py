from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.run.data.batches import (
    BatchBuffer,
    MicroBatch,
    batches,
    input_buffer_bytes,
    steps_per_epoch,
)
from s2a_edge.spec.errors import DataError, UsageError
from s2a_edge.spec.manifest import InputSpec
from tests.run.data.samples import CountingData

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))


def copied(micro_batches: Iterator[MicroBatch]) -> list[tuple[Any, ...]]:
    """Everything in them, by value: their arrays are overwritten."""
    return [
        (
            x.step,
            x.samples,
            x.step_samples,
            x.last,
            x.indices.tolist(),
            x.targets.tolist(),
            x.step_indices.tolist(),
            {name: array.tolist() for name, array in x.inputs.items()},
        )
        for x in micro_batches
    ]


@given(SIZES, st.booleans(), st.booleans())
def test_every_sample_comes_once_per_epoch(
    sizes: tuple[int, int, int], shuffle: bool, prefetch: bool
) -> None:
    samples, batch, micro = sizes
    data = CountingData(samples)
    seen: list[int] = []
    for part in batches(data, batch, micro, 3, 5, shuffle=shuffle, prefetch=prefetch):
        seen += part.inputs["x"][: part.samples, 0].astype(int).tolist()
        assert part.targets.tolist() == data.targets[part.indices].tolist()
    assert sorted(seen) == list(range(samples))
    assert shuffle or seen == list(range(samples))


@given(SIZES)
def test_micro_batches_are_full_size_and_padding_has_no_target(
    sizes: tuple[int, int, int],
) -> None:
    samples, batch, micro = sizes
    of_step: dict[int, list[int]] = {}
    ended: list[int] = []
    for part in batches(CountingData(samples), batch, micro, epoch=1, seed=2):
        assert part.inputs["x"].shape == (micro, 2)
        assert 1 <= part.samples <= micro
        assert len(part.targets) == part.samples and part.targets.dtype == np.int64
        assert not part.inputs["x"][part.samples :].any()
        of_step.setdefault(part.step, []).extend(part.indices.tolist())
        expected = min(batch, samples - part.step * batch)
        assert part.step_samples == expected
        assert part.step_indices[: len(of_step[part.step])].tolist() == of_step[part.step]
        assert part.last == (len(of_step[part.step]) == expected)
        ended += [part.step] if part.last else []
    assert ended == list(range(steps_per_epoch(samples, batch)))


@given(SIZES, st.integers(0, 2**64 - 1), st.integers(0, 1000), st.data())
def test_an_epoch_continues_at_any_step_as_if_it_had_not_stopped(
    sizes: tuple[int, int, int], seed: int, epoch: int, draw: st.DataObject
) -> None:
    samples, batch, micro = sizes
    start = draw.draw(st.integers(0, steps_per_epoch(samples, batch)))
    whole = copied(batches(CountingData(samples), batch, micro, epoch, seed))
    data = CountingData(samples)
    resumed = copied(batches(data, batch, micro, epoch, seed, start, prefetch=True))
    assert resumed == [x for x in whole if x[0] >= start]
    assert len(data.read) == max(0, samples - start * batch), "skipped samples are not read"


@given(SIZES, st.integers(1, 9))
def test_a_sample_does_not_depend_on_the_micro_batch(
    sizes: tuple[int, int, int], other_micro: int
) -> None:
    samples, batch, micro = sizes

    def rows(n: int) -> list[list[float]]:
        parts = batches(CountingData(samples), batch, n, epoch=4, seed=9)
        return [row for part in parts for row in part.inputs["x"][: part.samples].tolist()]

    assert rows(micro) == rows(other_micro)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        data = CountingData(50)
        list(batches(data, 8, 4, epoch, seed))
        return data.read

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 1) != order(1, 2)


def test_without_augmentation_samples_get_no_random_stream() -> None:
    for part in batches(CountingData(5), 5, 5, augment=False, shuffle=False):
        assert part.inputs["x"].tolist() == [[i, 0.0] for i in range(5)]


def test_one_buffer_is_reused_and_its_bytes_are_those_announced() -> None:
    inputs = (InputSpec("x", "float32", (2,), "tensor"), InputSpec("n", "int64", (), "tensor"))
    buffer = BatchBuffer.allocate(inputs, 3)
    assert sum(x.nbytes for x in buffer.inputs.values()) == input_buffer_bytes(inputs, 3)
    assert buffer.rows == 3
    assert input_buffer_bytes(inputs, 3, prefetch=True) == 2 * input_buffer_bytes(inputs, 3)
    assert [x.dtype for x in buffer.inputs.values()] == [np.float32, np.int64]

    own = BatchBuffer.allocate(CountingData.inputs, 3)
    parts = list(batches(CountingData(10), 5, 3, buffers=[own]))
    assert all(part.inputs["x"] is own.inputs["x"] for part in parts)


@given(SIZES)
def test_dropping_the_last_leaves_full_steps_only(sizes: tuple[int, int, int]) -> None:
    samples, batch, micro = sizes
    parts = list(batches(CountingData(samples), batch, micro, drop_last=True))
    assert all(part.step_samples == batch for part in parts)
    steps = steps_per_epoch(samples, batch, drop_last=True)
    assert sum(part.last for part in parts) == steps == samples // batch


@pytest.mark.parametrize(("batch", "micro"), [(0, 1), (1, 0), (-2, 1)])
def test_sizes_below_one_are_refused_at_once(batch: int, micro: int) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        batches(CountingData(3), batch, micro)


@pytest.mark.parametrize("start", [-1, 3])
def test_a_step_outside_the_epoch_is_refused_at_once(start: int) -> None:
    with pytest.raises(DataError, match="from 0 to 2, for 3 samples"):
        batches(CountingData(3), 2, 1, start_step=start)


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_failing_sample_raises_in_its_turn(prefetch: bool) -> None:
    parts = batches(CountingData(9, fails_at=7), 3, 3, shuffle=False, prefetch=prefetch)
    assert [next(parts).step, next(parts).step] == [0, 1]
    with pytest.raises(DataError, match=r"^7: "):
        next(parts)
    assert not prefetching()


def test_leaving_early_ends_the_thread() -> None:
    before = prefetching()
    parts = batches(CountingData(100), 2, 2, prefetch=True)
    with closing(cast(Any, parts)):
        next(parts)
        assert prefetching() == before + 1
    assert prefetching() == before


def prefetching() -> int:
    return sum(x.name.startswith("prefetch") for x in threading.enumerate())
