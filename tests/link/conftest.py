"""Bundles and boards for the tests of the link."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2a_edge.link.board_process import BoardFacts
from s2a_edge.link.install import BoardChecks
from tests.run.toy_bundle import write_toy_bundle
from tests.run.toy_graphs import ToySize

FACTS = BoardFacts(
    profile="orin-nano-8gb",
    python="3.10.12",
    onnxruntime="1.23.0",
    providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    mem_total_bytes=8 * 2**30,
    available_bytes=6 * 2**30,
    cpu_count=6,
)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle folders ``a``, ``b`` (other weights) and ``wide`` (other trainables). Read only."""
    folder = tmp_path_factory.mktemp("bundles")
    write_toy_bundle(folder / "a")
    write_toy_bundle(folder / "b", seed=1)
    write_toy_bundle(folder / "wide", size=ToySize(hidden=9))
    return folder


@pytest.fixture
def checks() -> BoardChecks:
    """A board that suits every toy bundle, and whose rehearsed step takes 7 ms."""
    return BoardChecks(detect=lambda: FACTS, rehearse=lambda folder, manifest, facts: 7.0)
