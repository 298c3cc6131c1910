"""``serial:`` over real pyserial on pseudo-terminals."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s2a_edge.link.blobs import Blob, BlobStore
from s2a_edge.link.open_transport import open_transport
from s2a_edge.link.serial_transport import SerialTransport
from s2a_edge.link.target import parse_target
from s2a_edge.link.transport import Outgoing
from s2a_edge.spec.errors import LinkError, SignatureError, UsageError
from tests.link.board_thread import BoardThread
from tests.link.contract import TransportContract, Way
from tests.link.faulty_line import CLEAN, Faults, FaultyLine
from tests.link.quick_board import write_wrapper

Start = Callable[..., tuple[FaultyLine, BoardThread]]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return tmp_path / "board"


@pytest.fixture
def start(tmp_path: Path, board: Path) -> Iterator[Start]:
    """Starts a line with faults, and a board at its end."""
    python = write_wrapper(tmp_path / "python")
    started: list[tuple[FaultyLine, BoardThread]] = []

    def begin(faults: Faults = CLEAN, seed: int = 0) -> tuple[FaultyLine, BoardThread]:
        line = FaultyLine(tmp_path, faults, seed).__enter__()
        agent = [str(python), "-m", "s2a_edge.link.agent", str(board)]
        started.append((line, BoardThread(line.board, board, lambda root: agent)))
        return started[-1]

    yield begin
    for line, thread in started:
        thread.stop()
        line.__exit__()


def payload(size_bytes: int, seed: int = 0) -> tuple[bytes, Blob]:
    content = random.Random(seed).randbytes(size_bytes)
    return content, Blob(hashlib.sha256(content).hexdigest(), size_bytes)


def send(line: FaultyLine, board: Path, tmp_path: Path, size_bytes: int, seed: int = 0) -> int:
    """Send a file, and have its hash compared; how many bytes the transport told of."""
    content, blob = payload(size_bytes, seed)
    source = tmp_path / "payload"
    source.write_bytes(content)
    told: list[int] = []
    with SerialTransport(parse_target(f"serial:{line.host}"), patience_s=20) as transport:
        transport.send([Outgoing(blob, source)], told.append)
    store = BlobStore(board)
    store.admit(blob)
    assert store.path(blob.sha256).read_bytes() == content
    return sum(told)


class TestSerialTransport(TransportContract):
    @pytest.fixture
    def way(self, start: Start) -> Way:
        line, _ = start()
        return lambda: open_transport(f"serial:{line.host}")


def test_a_board_with_trusted_keys_takes_no_file_of_a_stranger(
    start: Start, board: Path, tmp_path: Path
) -> None:
    (board / "trust").mkdir(parents=True)
    line, _ = start()
    with pytest.raises(SignatureError, match="no signed offer"):
        send(line, board, tmp_path, 1000)
    assert not (board / "incoming").exists()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(damaged=0.01),
        Faults(lost=0.01),
        Faults(doubled=0.002),
        Faults(bursts=0.002),
        Faults(messages=0.0005),
        Faults(damaged=0.01, lost=0.01),
        Faults(unplugged_at=(9_000,)),
    ],
)
def test_right_bytes_over_a_bad_line(
    start: Start, board: Path, tmp_path: Path, faults: Faults
) -> None:
    line, _ = start(faults)
    assert send(line, board, tmp_path, 20_000) == 20_000


def test_a_clean_line_carries_little_else(start: Start, board: Path, tmp_path: Path) -> None:
    """Payload that cannot be packed is at least nine tenths of what goes over the wire."""
    line, _ = start()
    send(line, board, tmp_path, 400_000)
    assert line.carried * 0.9 < 400_000


def test_what_can_be_packed_is(start: Start, board: Path, tmp_path: Path) -> None:
    line, _ = start()
    content = b"weights " * 20_000
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    (tmp_path / "payload").write_bytes(content)
    with open_transport(f"serial:{line.host}") as transport:
        transport.send([Outgoing(blob, tmp_path / "payload")], lambda n: None)
    assert line.carried < len(content) / 10


def test_a_board_that_restarts_goes_on_from_what_it_has(
    start: Start, board: Path, tmp_path: Path
) -> None:
    line, thread = start(Faults(bytes_per_s=200_000))
    timer = threading.Timer(0.6, thread.restart)
    timer.start()
    assert send(line, board, tmp_path, 200_000) == 200_000
    timer.join()
    assert line.carried < 330_000  # not all of it twice


def test_a_board_that_never_comes_back_is_one_line(
    start: Start, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2a_edge.link.line_host.SILENCE_S", 1.0)
    monkeypatch.setattr("s2a_edge.link.serial_login._PROMPT_WAIT_S", 0.1)
    line, thread = start(Faults(bytes_per_s=500_000))
    content, blob = payload(1_000_000)
    (tmp_path / "payload").write_bytes(content)
    notes: list[str] = []
    with SerialTransport(parse_target(f"serial:{line.host}"), patience_s=0.1) as transport:
        transport.notify = notes.append
        threading.Timer(0.3, thread.stop).start()
        with pytest.raises(LinkError, match="flash again: it goes on from there"):
            transport.send([Outgoing(blob, tmp_path / "payload")], lambda n: None)
    assert notes == ["line lost (no answer for 1 s); waiting for the board"]
    assert 0 < BlobStore(board).held_bytes(blob) < blob.size_bytes


def test_a_faster_speed_is_agreed_on(start: Start, board: Path, tmp_path: Path) -> None:
    line, _ = start(Faults(fastest_baud=921_600))
    with open_transport(f"serial:{line.host}?baud=921600") as transport:
        assert transport.bytes_per_s() == pytest.approx(0.95 * 92_160)
    # Left at the faster speed, the board is found again.
    with open_transport(f"serial:{line.host}?baud=921600") as transport:
        assert transport.call({"op": "hello"}, lambda text: None)["protocol"] == 1


def test_a_speed_that_the_line_does_not_take_is_given_up(
    start: Start, board: Path, tmp_path: Path
) -> None:
    line, _ = start(Faults(fastest_baud=460_800))
    with open_transport(f"serial:{line.host}?baud=921600") as transport:
        assert transport.bytes_per_s() == pytest.approx(0.95 * 11_520)
        assert transport.call({"op": "hello"}, lambda text: None)["protocol"] == 1


def test_no_device_and_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2a_edge.link.serial_login._PROMPT_WAIT_S", 0.1)
    with pytest.raises(LinkError, match="a serial device that can be opened"):
        open_transport(f"serial:{tmp_path}/none")
    with pytest.raises(UsageError, match="a speed in baud"):
        open_transport(f"serial:{tmp_path}/none?baud=fast")
    with FaultyLine(tmp_path) as line, pytest.raises(LinkError, match="serve-serial"):
        open_transport(f"serial:{line.host}")
