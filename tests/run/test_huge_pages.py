"""Huge pages for what was just mapped, and for nothing else."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from s2a_edge.run.engine import Engine
from s2a_edge.run.huge_pages import HUGE_PAGE_BYTES, advise_huge_pages
from s2a_edge.spec.onnx_smallest import negation_model
from s2a_edge.spec.units import MIB

_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_kernel = pytest.mark.skipif(
    not _KERNEL.exists() or "[madvise]" not in _KERNEL.read_text(),
    reason="this kernel does not give huge pages on request")


@needs_kernel
def test_advice_goes_to_the_new_region_alone() -> None:
    kept: list[mmap.mmap] = []

    def allocate() -> None:
        kept.append(mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    advised = advise_huge_pages(allocate, least_bytes=16 * MIB)
    assert 32 * MIB - 2 * HUGE_PAGE_BYTES < advised <= 32 * MIB
    # The region is there already: nothing new.
    assert advise_huge_pages(lambda: None, least_bytes=16 * MIB) == 0
    kept[0].close()


@pytest.mark.parametrize("setting", ["always madvise [never]", "[always] madvise never", None])
def test_nothing_is_asked_of_other_kernels(tmp_path: Path, setting: str | None) -> None:
    enabled = tmp_path / "enabled"
    if setting is not None:
        enabled.write_text(setting)
    called: list[int] = []
    advised = advise_huge_pages(lambda: called.append(1), least_bytes=1, enabled=enabled)
    assert (advised, called) == (0, [])


def test_shared_and_mapped_regions_do_not_count(tmp_path: Path) -> None:
    """Shared memory and mapped files are somebody else's."""
    maps, enabled = tmp_path / "maps", tmp_path / "enabled"
    enabled.write_text("always [madvise] never")
    maps.write_text("10000000-10200000 rw-p 00000000 00:00 0 \n")

    def allocate() -> None:
        maps.write_text("10000000-10200000 rw-p 00000000 00:00 0 \n"
                        "20000000-28000000 rw-s 00000000 00:00 0 \n"
                        "30000000-38000000 rw-p 00000000 08:01 7  /a/file\n")

    assert advise_huge_pages(allocate, least_bytes=1, maps=maps, enabled=enabled) == 0


def test_a_region_that_joins_an_older_one_is_found(monkeypatch: pytest.MonkeyPatch,
                                                   tmp_path: Path) -> None:
    """Address ranges are compared, not lines of the listing."""
    maps, enabled = tmp_path / "maps", tmp_path / "enabled"
    enabled.write_text("always [madvise] never")
    asked: list[tuple[int, int]] = []

    def advise(start: int, stop: int) -> int:
        asked.append((start, stop))
        return stop - start

    monkeypatch.setattr("s2a_edge.run.huge_pages._advise", advise)
    maps.write_text("10000000-10200000 rw-p 0 00:00 0\n20000000-20001000 rw-p 0 00:00 0\n")

    def allocate() -> None:
        maps.write_text("0f000000-10400000 rw-p 0 00:00 0\n20000000-20001000 rw-p 0 00:00 0\n")

    assert advise_huge_pages(allocate, least_bytes=2 * MIB, maps=maps, enabled=enabled) > 0
    assert asked == [(0x0F000000, 0x10000000), (0x10200000, 0x10400000)]


@needs_kernel
def test_the_engine_asks_for_its_arena(tmp_path: Path) -> None:
    (tmp_path / "negation.onnx").write_bytes(negation_model())
    engine = Engine(arena_limit_bytes=48 * MIB, threads=1)
    graph = engine.load(tmp_path / "negation.onnx")
    assert graph.inputs["x"].dtype == np.dtype(np.float32)
    graph.bind({"x": engine.tensor((1,))}, {"y": engine.tensor((1,))})
    graph.run()
    assert 44 * MIB <= engine.huge_page_bytes <= 48 * MIB
