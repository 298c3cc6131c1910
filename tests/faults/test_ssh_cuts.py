"""The connection to a board is cut while a bundle is flashed: nothing breaks, and it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s2a_edge.link.flash import Flashed, flash
from s2a_edge.link.open_transport import open_transport
from s2a_edge.link.releases import Releases
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import LinkError
from tests.link.quick_board import write_wrapper
from tests.link.sshd import Sshd, run_sshd
from tests.run.toy_bundle import write_toy_bundle
from tests.run.toy_graphs import ToySize

SIZE = ToySize(features=300, hidden=200)  # 240 kB of weights: several packets
TOTAL_BYTES = 250_000  # about what a flash sends, ssh's own included


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with run_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_toy_bundle(folder / "a", size=SIZE)
    write_toy_bundle(folder / "b", size=SIZE, seed=1)
    return folder


def put(bundle: Path, target: str) -> Flashed:
    with Bundle.open(bundle) as opened, open_transport(target) as transport:
        return flash(opened, transport)


def cut_at(server: Sshd, bundles: Path, tmp_path: Path, points: list[int]) -> int:
    """Flash ``b`` over ``a`` with cuts at ``points``; how many of them broke it off."""
    board, broken = tmp_path / "board", 0
    target = f"ssh://board{board}?python={write_wrapper(tmp_path / 'python')}"
    server.cut_after(None)
    old = put(bundles / "a", target).release
    releases = Releases(board)
    for point in points:
        server.cut_after(point)
        try:
            put(bundles / "b", target)
        except LinkError as error:
            broken += 1
            assert "\n" not in str(error)
        current = releases.current()
        Bundle.open(releases.path(str(current))).close()
        server.cut_after(None)
        done = put(bundles / "b", target)
        assert (releases.current(), releases.previous()) == (done.release, old)
        Bundle.open(board / "current").close()
        put(bundles / "a", target)  # back to the beginning, b's weights forgotten
        releases.store.discard(releases.sums(done.release)["weights.bin"])
        releases.switch(old)
        (board / "previous").unlink()
        releases.remove_unused()
    return broken


def test_cut_in_the_middle(
    server: Sshd, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2A_EDGE_SSH_OPTIONS", f"-F {server.config}")
    assert cut_at(server, bundles, tmp_path, [TOTAL_BYTES // 2]) == 1


@pytest.mark.faults_long
def test_cut_at_24_points(
    server: Sshd, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2A_EDGE_SSH_OPTIONS", f"-F {server.config}")
    points = [TOTAL_BYTES * i // 24 for i in range(24)]
    assert cut_at(server, bundles, tmp_path, points) >= 20
