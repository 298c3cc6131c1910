from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from s2a_edge.link.board_process import BoardFacts
from s2a_edge.link.dir_transport import DirTransport
from s2a_edge.link.flash import Flashed, flash
from s2a_edge.link.install import BoardChecks, Options
from s2a_edge.link.releases import Releases
from s2a_edge.link.rollback import roll_back
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import (
    BudgetError,
    BundleIntegrityError,
    CheckpointError,
    DeviceError,
    LinkError,
    S2AError,
    SignatureError,
)
from s2a_edge.spec.signing_key import generate_key, load_key, sign_bundle
from tests.link.conftest import FACTS


def put(
    bundle: Path, board: Path, checks: BoardChecks | None = None, options: Options | None = None
) -> Flashed:
    with Bundle.open(bundle) as opened:
        return flash(opened, DirTransport(board, checks), options=options)


def with_facts(**changes: object) -> BoardChecks:
    facts = dataclasses.replace(FACTS, **changes)  # type: ignore[arg-type]  # fields of the test
    return BoardChecks(detect=lambda: facts, rehearse=lambda *_: 1.0)


def failing(*_: object) -> float:
    raise DeviceError(where="health check", expected="a step", got="none", todo="-")


def test_a_board_gets_a_release_then_another_and_shares_what_is_equal(
    bundles: Path, tmp_path: Path, checks: BoardChecks
) -> None:
    first = put(bundles / "a", tmp_path / "board", checks)
    assert (first.switched, first.previous, first.step_ms) == (True, None, 7.0)
    assert first.there_bytes == 0
    again = put(bundles / "a", tmp_path / "board", checks)
    assert (again.switched, again.sent_bytes) == (False, 0)
    second = put(bundles / "b", tmp_path / "board", checks)
    assert second.previous == first.release
    assert second.sent_bytes < second.there_bytes  # the graphs are equal
    releases = Releases(tmp_path / "board")
    assert releases.current() == second.release
    assert releases.mark(second.release).good
    for name in (first.release, second.release):
        Bundle.open(releases.path(name)).close()
    shared = "eval.onnx"
    one, other = (releases.path(n) / shared for n in (first.release, second.release))
    assert one.samefile(other)
    Bundle.open(tmp_path / "board" / "current").close()


def test_a_third_release_pushes_the_first_out(
    bundles: Path, tmp_path: Path, checks: BoardChecks
) -> None:
    board = tmp_path / "board"
    done = [put(bundles / name, board, checks) for name in ("a", "b", "wide")]
    releases = Releases(board)
    assert set(releases.names()) == {done[1].release, done[2].release}
    kept = {h for name in releases.names() for h in releases.sums(name).values()}
    assert {p.name for p in (board / "blobs").iterdir()} == kept


@pytest.mark.parametrize(
    ("checks", "error", "message"),
    [
        (with_facts(onnxruntime=None), DeviceError, "none that can be imported"),
        (with_facts(onnxruntime="1.18.1"), DeviceError, r"1\.19 or newer, got 1\.18\.1"),
        (with_facts(providers=("TensorrtExecutionProvider",)), DeviceError, "Tensorrt"),
        (with_facts(python="3.8.10"), DeviceError, r"3\.10 or newer"),
        (with_facts(available_bytes=10 * 2**20), BudgetError, "too little"),
        (BoardChecks(detect=lambda: FACTS, rehearse=failing), DeviceError, "health check"),
    ],
)
def test_what_does_not_suit_leaves_the_board_as_it_was(
    bundles: Path, tmp_path: Path, checks: BoardChecks, error: type[S2AError], message: str
) -> None:
    board = tmp_path / "board"
    first = put(bundles / "a", board, with_facts())
    with pytest.raises(error, match=message):
        put(bundles / "b", board, checks)
    assert Releases(board).current() == first.release
    assert put(bundles / "b", board, with_facts()).switched


def test_a_release_that_fails_its_rehearsal_is_marked(bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        put(bundles / "a", tmp_path, BoardChecks(detect=lambda: FACTS, rehearse=failing))
    releases = Releases(tmp_path)
    (name,) = releases.names()
    assert "health check" in (releases.mark(name).bad or "")
    assert releases.current() is None


def test_a_bundle_for_another_device(bundles: Path, tmp_path: Path) -> None:
    from tests.run.toy_bundle import write_sums

    bundle = tmp_path / "nx"
    shutil.copytree(bundles / "a", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["recipe"]["device"] = "orin-nx-16gb"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    write_sums(bundle)
    with pytest.raises(DeviceError, match="expected orin-nx-16gb, got orin-nano-8gb"):
        put(bundle, tmp_path / "board", with_facts())
    assert put(bundle, tmp_path / "board", with_facts(), Options(any_board=True)).switched


def test_a_board_with_trusted_keys_takes_only_what_they_signed(
    bundles: Path, tmp_path: Path, checks: BoardChecks
) -> None:
    board = tmp_path / "board"
    (board / "trust").mkdir(parents=True)
    generate_key(tmp_path / "ours")
    generate_key(tmp_path / "theirs")
    shutil.copy(tmp_path / "ours.pub", board / "trust")
    shutil.copytree(bundles / "a", tmp_path / "signed")
    for bundle in (bundles / "a", tmp_path / "signed"):
        with pytest.raises(SignatureError):
            put(bundle, board, checks)
        assert not (board / "blobs").exists()  # not a byte was sent
        sign_bundle(tmp_path / "signed", load_key(tmp_path / "theirs.key"))
    sign_bundle(tmp_path / "signed", load_key(tmp_path / "ours.key"))
    done = put(tmp_path / "signed", board, checks)
    assert done.signed_by == load_key(tmp_path / "ours.key").public.key_id
    assert (board / "current" / "SHA256SUMS.sig").is_file()


def test_blobs_damaged_on_the_board_are_found_and_sent_again(
    bundles: Path, tmp_path: Path, checks: BoardChecks
) -> None:
    done = put(bundles / "a", tmp_path, checks)
    release = tmp_path / "releases" / done.release
    weights = release / "weights.bin"
    weights.chmod(0o644)
    weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    (release / "stranger").write_text("x")
    with pytest.raises(BundleIntegrityError):
        Bundle.open(release)
    repaired = put(bundles / "a", tmp_path, checks)
    assert repaired.sent_bytes > 0
    Bundle.open(release).close()
    assert not (release / "stranger").exists()


def test_runs_that_a_new_release_does_not_fit_are_named(
    bundles: Path, tmp_path: Path, checks: BoardChecks
) -> None:
    from s2a_edge.run.trainer import Trainer
    from tests.run.toy_bundle import write_samples

    board = tmp_path / "board"
    put(bundles / "a", board, checks)
    data = write_samples(tmp_path / "t.npz", 8)
    Trainer(board / "current").fit(data, epochs=1, lr=0.1, out=board / "runs" / "n1")
    before = (board / "runs" / "n1" / "last.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"head\.weight was \[3, 5\], is \[3, 9\]"):
        put(bundles / "wide", board, checks)
    assert put(bundles / "b", board, checks).switched
    # The tuned values go on in the new release, which has the same trainables.
    trainer = Trainer(board / "current")
    trainer.start_from(board / "runs" / "n1")
    trainer.fit(data, epochs=1, lr=0.1, out=board / "runs" / "n2")
    assert put(bundles / "wide", board, checks, Options(new_trainables=True)).switched
    with pytest.raises(CheckpointError, match="head"):
        Trainer(board / "current").start_from(board / "runs" / "n1")
    assert (board / "runs" / "n1" / "last.safetensors").read_bytes() == before


def test_rollback_there_and_back(bundles: Path, tmp_path: Path, checks: BoardChecks) -> None:
    releases = Releases(tmp_path)
    first = put(bundles / "a", tmp_path, checks).release
    with pytest.raises(LinkError, match="no other release"):
        roll_back(releases)
    second = put(bundles / "b", tmp_path, checks).release
    assert roll_back(releases).current == first
    assert (releases.current(), releases.previous()) == (first, second)
    assert roll_back(releases).current == second


def test_one_at_a_time(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2a_edge.link.releases._LOCK_WAIT_S", 0.0)
    with (
        Releases(tmp_path).lock(),
        pytest.raises(LinkError, match="nobody else"),
        Releases(tmp_path).lock(),
    ):
        pass


def test_the_real_board_checks(bundles: Path, tmp_path: Path) -> None:
    """The rehearsed step, in the board's own runtime."""
    done = put(bundles / "a", tmp_path)
    assert done.step_ms is not None
    assert done.step_ms > 0


def test_a_board_whose_runtime_does_not_start(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(DeviceError, match="devices detect"):
        put(bundles / "a", tmp_path)
    assert Releases(tmp_path).current() is None


def test_facts_know_versions() -> None:
    assert dataclasses.replace(FACTS, onnxruntime="1.20.1+cu12").onnxruntime_release() == (1, 20)
    assert BoardFacts(None, None, None, (), None, None, None).onnxruntime_release() is None
