from __future__ import annotations

import dataclasses

import pytest

from s2a_edge.spec.changes import Change, cheapest, smaller_micro_batches
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import requirement
from s2a_edge.spec.units import MIB
from tests.spec.test_budget import manifest


def change(flags: str, total: int, slower: float | None, *, fits: bool = True) -> Change:
    return Change(flags, "train", total, 100 - total, slower, fits, "measured at pack time")


def timed(bundle: Manifest, step_ms: dict[int, float]) -> Manifest:
    train = tuple(
        dataclasses.replace(
            graph, evidence=dataclasses.replace(graph.evidence, step_ms=step_ms[graph.batch])
        )
        for graph in bundle.graphs.train
    )
    return dataclasses.replace(bundle, graphs=dataclasses.replace(bundle.graphs, train=train))


def test_the_three_fastest_that_fit() -> None:
    found = cheapest(
        [
            change("slow", 10, 3.0),
            change("fast", 50, 1.1),
            change("tight", 90, 1.0, fits=False),
            change("unknown", 20, None),
            change("as fast, smaller", 40, 1.1),
        ]
    )
    assert [one.flags for one in found] == ["as fast, smaller", "fast", "slow"]


def test_where_none_fits_what_comes_closest() -> None:
    found = cheapest(
        [change("a", 80, 1.0, fits=False), change("b", 60, 9.0, fits=False),
         change("worse", 120, 1.0, fits=False)]
    )  # fmt: skip
    assert [one.flags for one in found] == ["b", "a"]


def test_packed_micro_batches_come_with_what_was_measured() -> None:
    bundle = timed(manifest({1: 10 * MIB, 2: 20 * MIB, 8: 80 * MIB}), {1: 2.0, 2: 3.0, 8: 8.0})
    needed = requirement(bundle)
    budget_bytes = requirement(bundle, micro_batch=2).total_bytes
    two, one = smaller_micro_batches(bundle, needed, budget_bytes)
    assert (two.flags, two.slower, two.fits) == ("--micro-batch 2", 1.5, True)
    assert two.saves_bytes == needed.total_bytes - budget_bytes  # of the arena and of the inputs
    assert (one.flags, one.slower) == ("--micro-batch 1", 2.0)
    assert str(two) == "--micro-batch 2 (60.1 MiB less, 1.50 x the time, measured at pack time)"


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_larger_ones_are_no_help(micro_batch: int) -> None:
    bundle = manifest({1: 10 * MIB, 8: 80 * MIB})
    needed = requirement(bundle, micro_batch=micro_batch)
    found = smaller_micro_batches(bundle, needed, 0)
    assert len(found) == (0 if micro_batch == 1 else 1)
