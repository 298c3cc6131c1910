from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2a_edge.link.blobs import Blob
from s2a_edge.link.dir_transport import DirTransport
from s2a_edge.link.flash import flash
from s2a_edge.link.install import BoardChecks
from s2a_edge.link.messages import OnNote, Request
from s2a_edge.link.pull import pull
from s2a_edge.link.transport import Incoming
from s2a_edge.run.finished_run import evaluate_run, export_run
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import CheckpointError, LinkError, UsageError
from tests.run.toy_bundle import write_samples


@pytest.fixture(scope="module")
def board(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board with a run ``night`` of two epochs."""
    folder = tmp_path_factory.mktemp("board")
    from tests.link.conftest import FACTS

    checks = BoardChecks(detect=lambda: FACTS, rehearse=lambda *_: 1.0)
    with Bundle.open(bundles / "a") as bundle:
        flash(bundle, DirTransport(folder, checks))
    data = write_samples(folder / "t.npz", 20)
    with Bundle.open(folder / "current") as bundle:
        Trainer(bundle).fit(data, val=data, epochs=2, lr=0.1, out=folder / "runs" / "night")
    (folder / "runs" / "night" / "train.log").write_text("a line\n")
    return folder


def test_the_small_pull_is_enough_to_evaluate_and_export(
    board: Path, bundles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "night"
    done = pull(DirTransport(board), "night", out)
    assert set(done.files) == {"run.json", "metrics.jsonl", "train.log", "best.safetensors"}
    whole = (board / "runs" / "night" / "best.safetensors").stat().st_size
    assert (out / "best.safetensors").stat().st_size < whole
    there = evaluate_run(board / "runs" / "night", board / "t.npz")
    here = evaluate_run(out, board / "t.npz", bundle=bundles / "a")
    assert here.loss == there.loss
    export_run(out, tmp_path / "tuned.onnx", bundle=bundles / "a")
    export_run(board / "runs" / "night", tmp_path / "there.onnx", bundle=bundles / "a")
    assert (tmp_path / "tuned.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()
    # Again over the same folder, now all of it; and the run can go on here.
    assert "last.safetensors" in pull(DirTransport(board), "night", out, is_full=True).files
    Trainer(bundles / "a").load_checkpoint(out)


def test_the_small_checkpoint_cannot_resume(board: Path, bundles: Path, tmp_path: Path) -> None:
    pull(DirTransport(board), "night", tmp_path / "night")
    (tmp_path / "night" / "best.safetensors").rename(tmp_path / "night" / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"m\.head\.bias is missing"):
        Trainer(bundles / "a").fit(
            board / "t.npz", val=board / "t.npz", epochs=2, lr=0.1, out=tmp_path / "night",
            resume=True,
        )  # fmt: skip


def test_unknown_runs_and_folders_in_the_way(board: Path, tmp_path: Path) -> None:
    for name in ("day", "../runs/night", "", ".."):
        with pytest.raises(UsageError, match="there are: night"):
            pull(DirTransport(board), name, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="something else"):
        pull(DirTransport(board), "night", tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


class HostileBoard(DirTransport):
    """Offers what it likes."""

    files: object = None

    def call(self, request: Request, on_note: OnNote) -> object:
        return {"files": self.files}


def test_a_hostile_board_writes_nothing_elsewhere(board: Path, tmp_path: Path) -> None:
    transport = HostileBoard(board)
    good = {"name": "run.json", "path": "runs/night/run.json", "size_bytes": 3, "sha256": "0" * 64}
    for files in (
        None, [], 3, [None], [good, good], [{**good, "name": "../evil"}], [{**good, "name": "/e"}],
        [{**good, "path": "runs/../../etc/passwd"}], [{**good, "path": "/etc/passwd"}],
        [{**good, "sha256": "x"}], [{**good, "size_bytes": -1}], [good],
    ):  # fmt: skip
        transport.files = files
        with pytest.raises(LinkError):
            pull(transport, "night", tmp_path / "out" / "night")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_more_than_was_announced_does_not_fill_the_disk(tmp_path: Path) -> None:
    incoming = Incoming("runs/n/run.json", Blob("0" * 64, 5), tmp_path / "x")
    incoming.require_room(5)
    with pytest.raises(LinkError, match="expected 5 bytes, as announced"):
        incoming.require_room(6)


def test_a_damaged_checkpoint_is_said(board: Path, tmp_path: Path) -> None:
    run = tmp_path / "b" / "runs" / "n"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"bundle_hash": "0" * 64}))
    for content in (b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{]", b"\x02\0\0\0\0\0\0\0[]"):
        (run / "last.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="a whole checkpoint"):
            pull(DirTransport(tmp_path / "b"), "n", tmp_path / "out")
