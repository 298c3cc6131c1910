"""Whatever comes over a line or in a bundle: our errors or none, nothing outside, bounded memory.

The short versions run by default; ``-m faults_long`` runs more than 10,000 examples.
"""

from __future__ import annotations

import base64
import io
import json
import resource
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from s2a_edge.link.agent import answer
from s2a_edge.link.blobs import Blob, BlobStore, sha256_of
from s2a_edge.link.channel import Channel
from s2a_edge.link.channel_frames import ACK, DATA
from s2a_edge.link.framing import Deframer, encode_frame
from s2a_edge.link.install import BoardChecks, Offer, install
from s2a_edge.link.line import BYE, HELLO, FdLine, LineLostError, control_frame
from s2a_edge.link.line_host import LineHost
from s2a_edge.link.line_server import LineServer
from s2a_edge.link.releases import Releases
from s2a_edge.link.stream_messages import (
    ANSWER,
    CHUNK,
    NOTE,
    REQUEST,
    MessageReader,
    pack_chunk,
    pack_message,
)
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.checksums import format_sums, sha256_file
from s2a_edge.spec.errors import BundleError, S2AError
from tests.link.conftest import FACTS
from tests.spec import bundle_samples

SESSION = 7
BOUND_KIB = 256 * 1024  # what hypothesis itself keeps of thousands of examples included
AGENT = ["echo", '{"ok": true, "value": 1}']
NAMES = st.sampled_from(
    ["runs/n/run.json", "../../etc/passwd", "/etc/passwd", "runs/../../x", "runs/link", "", "runs"]
)
HASHES = st.sampled_from(["0" * 64, "../evil", "Z" * 64, "", "f" * 63])
NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**40, 2**63, 10**30, True, None, 1.5, "7"])
REQUESTS = st.one_of(
    st.fixed_dictionaries(
        {"op": st.just("put"), "blob": st.tuples(HASHES, NUMBERS).map(list), "offset": NUMBERS}
    ),
    st.fixed_dictionaries({"op": st.just("get"), "path": NAMES, "offset": NUMBERS}),
    st.fixed_dictionaries({"op": st.just("speed"), "baud": NUMBERS}),
    st.dictionaries(st.sampled_from(["op", "blob", "x"]), st.none() | st.text(max_size=5)),
)
JSON_LINES = REQUESTS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)
MESSAGES = st.one_of(
    JSON_LINES.map(lambda line: pack_message(REQUEST, line)),
    JSON_LINES.map(lambda line: pack_message(ANSWER, line)),
    JSON_LINES.map(lambda line: pack_message(NOTE, line)),
    st.binary(max_size=80).map(lambda data: pack_message(CHUNK, data)),
    st.just(pack_chunk(b"\0" * 16_384)),
    st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1)).map(
        lambda t: bytes([t[0]]) + t[1].to_bytes(4, "little")
    ),
    st.binary(max_size=30),
)
U64 = st.sampled_from([0, 1, 40, 2**16, 2**17, 2**32, 2**48, 2**64 - 1])
FRAMES = st.one_of(
    st.binary(max_size=60).map(encode_frame),
    st.tuples(U64, U64, U64, U64).map(
        lambda t: encode_frame(
            bytes([ACK])
            + SESSION.to_bytes(4, "little")
            + t[0].to_bytes(8, "little")
            + t[1].to_bytes(8, "little")
            + (t[2] % 2**32).to_bytes(4, "little")
            + t[3].to_bytes(8, "little")
        )
    ),
    st.tuples(st.integers(0, 2**32 - 1), U64, st.binary(max_size=50)).map(
        lambda t: encode_frame(
            bytes([DATA])
            + SESSION.to_bytes(4, "little")
            + t[0].to_bytes(4, "little")
            + t[1].to_bytes(8, "little")
            + t[2]
        )
    ),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(
        lambda t: encode_frame(control_frame(t[0], t[1]))
    ),
    st.binary(max_size=200),
    st.just(b"\1" * 9000),
)


class InOrder:
    """The frames that carry a stream of messages, in order, as a real sender would."""

    def __init__(self) -> None:
        self._channel = Channel(SESSION)

    def frames(self, data: bytes) -> bytes:
        self._channel.sender.write(data)
        out = b""
        while (content := self._channel.poll(0.0)) is not None:
            out += encode_frame(content)
        return out


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """A few bytes replaced, removed or added."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(changed)))
        changed[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    return bytes(changed)


def hostile_bytes(data: st.DataObject) -> bytes:
    """Messages in good frames, frames out of order, and bytes that are neither."""
    sender, out = InOrder(), b""
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            out += mutated(data, sender.frames(data.draw(MESSAGES)))
        else:
            out += mutated(data, data.draw(FRAMES))
    return out


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A board in a folder that holds nothing else, and a file that it must not give away."""
    (tmp_path / "board" / "runs" / "n").mkdir(parents=True)
    (tmp_path / "board" / "runs" / "n" / "run.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "board" / "runs" / "link").symlink_to(tmp_path / "secret")
    return tmp_path


def feed_board(place: Path, content: bytes) -> bytes:
    """What a board answers to these bytes."""
    host, board = socket.socketpair()
    with host, board:
        host.setblocking(False)
        server = LineServer(
            FdLine(board.fileno(), board.fileno()), place / "board", lambda _: AGENT
        )
        host.sendall(encode_frame(control_frame(HELLO, SESSION)) + content)
        try:
            for _ in range(8):
                server.step(0.0)
        finally:
            server.close()
        try:
            return host.recv(2**20)
        except BlockingIOError:
            return b""


def check_board(place: Path, data: st.DataObject) -> None:
    said = feed_board(place, hostile_bytes(data))
    assert b"secret" not in said
    assert {p.name for p in place.iterdir()} == {"board", "secret"}
    incoming = place / "board" / "incoming"
    names = [p.name for p in incoming.iterdir()] if incoming.is_dir() else []
    assert set(names) <= {"0" * 64}
    for name in names:
        (incoming / name).unlink()


def check_host(data: st.DataObject) -> None:
    host_end, board_end = socket.socketpair()
    with host_end, board_end:
        host = LineHost(FdLine(host_end.fileno(), host_end.fileno()))
        host.end.channel = Channel(SESSION)
        board_end.sendall(hostile_bytes(data))
        board_end.sendall(InOrder().frames(pack_message(ANSWER, b'{"ok": true}')))
        board_end.shutdown(socket.SHUT_WR)  # and then it is gone, so that nothing waits
        try:
            host.call({"op": "hello"}, lambda text: None)
        except (S2AError, LineLostError) as error:
            assert str(error)


def run_examples(count: int, check: Callable[[st.DataObject], None]) -> None:
    """Run examples; the process must not have held much more at any moment of them."""

    # Without shrinking: what fails is printed as it was drawn.
    @settings(max_examples=count, database=None, phases=[Phase.explicit, Phase.generate])
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        check(data)

    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    examples()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < BOUND_KIB


@pytest.mark.parametrize("count", [40, pytest.param(4000, marks=pytest.mark.faults_long)])
def test_a_board_survives_any_host(place: Path, count: int) -> None:
    run_examples(count, lambda data: check_board(place, data))


@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.faults_long)])
def test_a_host_survives_any_board(count: int) -> None:
    run_examples(count, check_host)


@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.faults_long)])
def test_streams_and_frames_of_any_bytes(count: int) -> None:
    def check(data: st.DataObject) -> None:
        content = data.draw(st.binary(max_size=300)) + hostile_bytes(data)
        deframer, reader = Deframer(), MessageReader()
        for frame in deframer.feed(content):
            Channel(SESSION).receive(frame, 0.0)
        try:
            for _ in reader.feed(content):
                pass
        except S2AError as error:
            assert error.where == "stream"

    run_examples(count, check)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    bundle_samples.write_sample(folder / "b")
    bundle_samples.write_sample(folder / "b.s2a")
    return folder


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.faults_long)])
def test_mutated_tars(pristine: Path, tmp_path: Path, count: int) -> None:
    content = (pristine / "b.s2a").read_bytes()

    def check(data: st.DataObject) -> None:
        folder = tmp_path / "inside"
        shutil.rmtree(folder, ignore_errors=True)  # of an example that failed
        folder.mkdir()
        (folder / "b.s2a").write_bytes(mutated(data, content))
        try:
            with Bundle.open(folder / "b.s2a") as bundle:
                bundle.initial_parameters()
        except BundleError:
            assert [p.name for p in folder.iterdir()] == ["b.s2a"]
        assert [p.name for p in tmp_path.iterdir()] == ["inside"]

    run_examples(count, check)


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.faults_long)])
def test_mutated_bundles_with_right_hashes_are_installed_or_refused(
    pristine: Path, tmp_path: Path, count: int
) -> None:
    """Someone who can write a bundle can write its checksums, too."""
    names = sorted(p.name for p in (pristine / "b").iterdir() if p.name != "SHA256SUMS")
    checks = BoardChecks(detect=lambda: FACTS, rehearse=lambda *_: 1.0)

    def check(data: st.DataObject) -> None:
        board, bundle = tmp_path / "board", tmp_path / "bundle"
        for path in (board, bundle):
            shutil.rmtree(path, ignore_errors=True)  # of an example that failed
        shutil.copytree(pristine / "b", bundle)
        name = data.draw(st.sampled_from(names))
        (bundle / name).write_bytes(mutated(data, (bundle / name).read_bytes()))
        sums = format_sums({n: sha256_file(bundle / n) for n in names})
        sums = mutated(data, sums) if data.draw(st.integers(0, 3)) == 0 else sums
        store = BlobStore(board)
        store.make_folders()
        for path in bundle.iterdir():
            shutil.copy(path, store.path(sha256_of(path)))
        releases = Releases(board)
        try:
            with releases.lock():
                install(releases, Offer(sums, None), checks=checks)
            Bundle.open(board / "current").close()
        except S2AError:
            assert releases.current() is None
        assert {p.name for p in tmp_path.iterdir()} == {"board", "bundle"}

    run_examples(count, check)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.faults_long)])
def test_the_agent_answers_any_request(place: Path, count: int) -> None:
    fields = st.dictionaries(
        st.sampled_from(["blobs", "sums", "signature", "options", "name", "full", "blob"]),
        NUMBERS | NAMES | st.lists(st.tuples(HASHES, NUMBERS).map(list), max_size=3)
        | st.binary(max_size=20).map(lambda b: base64.b64encode(b).decode())
        | st.dictionaries(st.text(max_size=4), st.booleans(), max_size=2),
    )  # fmt: skip
    operations = ["hello", "held", "admit", "offer", "install", "rollback", "run", "runtime", "x"]

    def check(data: st.DataObject) -> None:
        request = {**data.draw(fields), "op": data.draw(st.sampled_from(operations))}
        given = answer(place / "board", request, lambda text: None)
        assert json.loads(json.dumps(given))["ok"] in (True, False)
        assert {p.name for p in place.iterdir()} == {"board", "secret"}

    run_examples(count, check)


def test_runtimes_made_to_harm(tmp_path: Path) -> None:
    import zipfile

    from s2a_edge.link.bare_agent import install_runtime

    for name in ("../evil.py", "/evil.py", "a/../../evil.py"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(name, "x")
        store = BlobStore(tmp_path / "board")
        store.make_folders()
        (tmp_path / "zip").write_bytes(packed.getvalue())
        blob = Blob(sha256_of(tmp_path / "zip"), len(packed.getvalue()))
        (tmp_path / "zip").rename(store.path(blob.sha256))
        with pytest.raises(BundleError, match="the name"):
            install_runtime(tmp_path / "board", blob)
        assert [p.name for p in tmp_path.iterdir()] == ["board"]
        assert not list((tmp_path / "board").rglob("evil*"))


def test_goodbye_of_a_stranger_changes_nothing(place: Path) -> None:
    said = feed_board(place, encode_frame(control_frame(BYE, SESSION + 1)))
    assert len(list(Deframer().feed(said))) == 1  # WELCOME, and no more


def test_tars_are_read_by_the_same_rules(pristine: Path) -> None:
    """The sample is what tar itself says that it is."""
    with tarfile.open(pristine / "b.s2a") as tar:
        assert {m.name for m in tar.getmembers()} == {p.name for p in (pristine / "b").iterdir()}
