from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from s2a_edge.link.blobs import Blob, BlobStore, link_or_copy, read_blob
from s2a_edge.spec.errors import BundleIntegrityError, LinkError, StorageError

CONTENT = bytes(range(256)) * 20
BLOB = Blob(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    made = BlobStore(tmp_path / "board")
    made.make_folders()
    return made


def test_bytes_arrive_in_pieces_and_become_one_read_only_file(store: BlobStore) -> None:
    assert store.held_bytes(BLOB) == 0
    store.append(BLOB, 0, CONTENT[:1000])
    assert store.held_bytes(BLOB) == 1000
    with pytest.raises(LinkError, match=f"{BLOB.size_bytes} bytes, got 1000"):
        store.admit(BLOB)
    store.append(BLOB, 1000, CONTENT[1000:])
    store.admit(BLOB)
    store.admit(BLOB)
    assert store.is_whole(BLOB)
    assert store.path(BLOB.sha256).read_bytes() == CONTENT
    assert stat.S_IMODE(store.path(BLOB.sha256).stat().st_mode) == 0o444
    assert list(store.incoming.iterdir()) == []


def test_pieces_out_of_place_are_refused(store: BlobStore) -> None:
    with pytest.raises(LinkError, match="offset 0, got 10"):
        store.append(BLOB, 10, b"x")
    with pytest.raises(LinkError, match="at most"):
        store.append(BLOB, 0, CONTENT + b"x")
    assert store.held_bytes(BLOB) == 0


def test_damaged_bytes_are_thrown_away(store: BlobStore) -> None:
    store.append(BLOB, 0, b"x" + CONTENT[1:])
    with pytest.raises(BundleIntegrityError, match="flash again"):
        store.admit(BLOB)
    assert store.held_bytes(BLOB) == 0


def test_what_is_longer_or_no_file_is_thrown_away(store: BlobStore, tmp_path: Path) -> None:
    (store.incoming / BLOB.sha256).write_bytes(CONTENT + b"x")
    assert store.held_bytes(BLOB) == 0
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep me")
    (store.incoming / BLOB.sha256).symlink_to(victim)
    with pytest.raises(StorageError):
        store.append(BLOB, 7, b"x")
    assert store.held_bytes(BLOB) == 0
    (store.blobs / BLOB.sha256).mkdir()
    assert store.held_bytes(BLOB) == 0
    assert victim.read_bytes() == b"keep me"


def test_no_room_is_said_first(store: BlobStore) -> None:
    with pytest.raises(StorageError, match="free some space"):
        store.require_space([Blob("0" * 64, 2**39)])


def test_an_empty_blob(store: BlobStore) -> None:
    empty = Blob(hashlib.sha256(b"").hexdigest(), 0)
    store.admit(empty)
    assert store.is_whole(empty)


@pytest.mark.parametrize(
    "value", [None, [], ["0" * 64], ["../../etc/passwd", 1], ["0" * 64, -1], ["0" * 64, 2**60],
              ["0" * 64, 1.5], ["0" * 64, True], ["Z" * 64, 1]],
)  # fmt: skip
def test_names_from_a_wire_are_hashes(value: object) -> None:
    with pytest.raises(LinkError):
        read_blob(value)


def test_without_hard_links_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    (tmp_path / "a").write_bytes(CONTENT)
    link_or_copy(tmp_path / "a", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "a")
    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == CONTENT
    assert not (tmp_path / "copied").samefile(tmp_path / "a")


def test_bytes_are_on_the_disk_before_the_name_is(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut needs: data, then its name, then the folder that holds the name."""
    order: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        order.append("folder" if is_folder else "data")
        real_sync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        order.append("rename")
        return real_replace(path, target)

    store.append(BLOB, 0, CONTENT)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    store.admit(BLOB)
    assert order == ["data", "rename", "folder"]
