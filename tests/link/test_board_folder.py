"""A board's folder that somebody prepared to do harm elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2a_edge.link.board_folder import asks_for_signatures
from s2a_edge.link.dir_transport import DirTransport
from s2a_edge.link.flash import flash
from s2a_edge.link.install import BoardChecks
from s2a_edge.link.messages import Request
from s2a_edge.link.releases import Releases
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import S2AError, StorageError, UsageError


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    return folder


@pytest.mark.parametrize(
    "name", ["blobs", "incoming", "releases", "marks", "runtimes", "outgoing"]
)
def test_a_link_in_place_of_a_folder_is_refused(
    tmp_path: Path, precious: Path, bundles: Path, checks: BoardChecks, name: str
) -> None:
    board = tmp_path / "board"
    board.mkdir()
    (board / name).symlink_to(precious)
    asked: tuple[Request, ...] = (
        {"op": "hello"},
        {"op": "run", "name": "letter.txt"},
        {"op": "rollback"},
    )
    with Bundle.open(bundles / "a") as bundle:
        transport = DirTransport(board, checks)
        with pytest.raises(StorageError, match=f"board/{name}: expected a folder, or none"):
            flash(bundle, transport)
        for request in asked:
            with pytest.raises(S2AError, match="got a link"):
                transport.call(request, lambda text: None)
    assert [p.name for p in precious.iterdir()] == ["letter.txt"]


def test_a_release_that_is_a_link_is_replaced_and_its_end_left_alone(
    tmp_path: Path, precious: Path, bundles: Path, checks: BoardChecks
) -> None:
    releases = Releases(tmp_path / "board")
    releases.folder.mkdir(parents=True)
    (releases.folder / "stray").symlink_to(precious)
    with Bundle.open(bundles / "a") as bundle:
        (releases.folder / bundle.hash).symlink_to(precious)
        done = flash(bundle, DirTransport(releases.root, checks))
    assert [p.name for p in releases.folder.iterdir()] == [done.release]
    assert not releases.path(done.release).is_symlink()
    assert [p.name for p in precious.iterdir()] == ["letter.txt"]


def test_runs_and_photos_may_lie_on_a_larger_disk(
    tmp_path: Path, precious: Path, bundles: Path, checks: BoardChecks
) -> None:
    board = tmp_path / "board"
    board.mkdir()
    (board / "runs").symlink_to(precious)
    with Bundle.open(bundles / "a") as bundle:
        assert flash(bundle, DirTransport(board, checks)).switched


def test_keys_that_are_not_there_now_are_asked_for_all_the_same(
    tmp_path: Path, bundles: Path, checks: BoardChecks
) -> None:
    """A card with the keys that is not mounted must not open the board to anybody."""
    board = tmp_path / "board"
    assert not asks_for_signatures(board)
    board.mkdir()
    assert not asks_for_signatures(board)
    (board / "trust").symlink_to(tmp_path / "not mounted")
    assert asks_for_signatures(board)
    with Bundle.open(bundles / "a") as bundle, pytest.raises((UsageError, StorageError)):
        flash(bundle, DirTransport(board, checks))
    assert not (board / "releases").exists()
