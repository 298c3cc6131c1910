"""The pool's limits: a place outside of the plan is refused before anything is bound."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s2a_edge.run.pool import Pool
from s2a_edge.spec.bundle_graphs import _check_places
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.onnx_facts import ValueFacts
from s2a_edge.spec.pool_ports import pool_port


@pytest.mark.parametrize(("offset", "size"), [(32, 4), (4096, 4), (4032, 128), (0, -4)])
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


@pytest.mark.parametrize(("offset", "dtype", "shape"), [
    (2**30, "float32", (-(2**40),)), (32, "float32", (4,)), (4096, "float32", (1,)),
    (0, "string", (1,)), (0, "float32", None), (0, "float32", (1025,)),
])  # fmt: skip
def test_a_bundle_cannot_name_such_a_place(
    offset: int, dtype: str, shape: tuple[int, ...] | None
) -> None:
    with pytest.raises(BundleError):
        _check_places("train.onnx", [ValueFacts(pool_port(offset, 0), dtype, shape)], 4096)


def test_a_place_inside_of_the_pool_is_taken() -> None:
    _check_places("train.onnx", [ValueFacts(pool_port(64, 0), "float32", (1008,))], 4096)
