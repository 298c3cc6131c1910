"""The pool's limits: a place outside of the plan is refused before anything is bound."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from s2a_edge.run.pool import Pool
from s2a_edge.spec.errors import BudgetError, BundleError, InternalError


@pytest.mark.parametrize(("offset", "size"), [(32, 4), (4096, 4), (4032, 128), (0, -4),
                                             (0, 0), (-64, 4)])
def test_places_outside_of_the_plan_are_refused(offset: int, size: int) -> None:
    pool = Pool("cpu", 4096)
    with pytest.raises(BundleError):
        pool.reserve("train", offset, size)
    assert pool.size_bytes == 0


def test_graphs_share_one_piece_as_large_as_the_largest() -> None:
    pool = Pool("cpu", 4096)
    pool.reserve("eval", 0, 100)
    pool.reserve("train", 1024, 3072)
    assert pool.size_bytes == 4096
    assert pool.address() == pool.address()
    assert pool.address() % 4096 == 0


def test_memory_that_graphs_are_bound_to_does_not_move() -> None:
    pool = Pool("cpu", None)
    pool.reserve("train", 0, 4096)
    address = pool.address()
    pool.reserve("eval", 64, 4032)
    with pytest.raises(InternalError, match="loaded before the first one runs"):
        pool.reserve("late", 4096, 64)
    assert pool.size_bytes == 4096
    assert pool.address() == address


@pytest.mark.parametrize("size", [2**62, 2**64], ids=["refused by the system", "no such address"])
def test_memory_that_cannot_be_had_is_a_budget_error(size: int) -> None:
    pool = Pool("cpu", None)
    pool.reserve("train", 0, size)
    with pytest.raises(BudgetError) as error:
        pool.address()
    assert error.value.missing_bytes == size


def test_a_device_out_of_memory_is_a_budget_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", refuse)
    pool = Pool("cuda", None)
    pool.reserve("train", 0, 64)
    with pytest.raises(BudgetError, match="out of memory"):
        pool.address()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_its_pages_are_bounded_and_counted_like_those_of_the_arena() -> None:
    pool = Pool("cpu", 4096)
    pool.reserve("train", 0, 4096)
    address = pool.address()
    for line in Path("/proc/self/maps").read_text("ascii").splitlines():
        span, permissions, *_ = line.split()
        start, stop = (int(number, 16) for number in span.split("-"))
        if start <= address < stop:
            assert permissions == "rw-p"
            return
    pytest.fail("no mapping holds the pool")
