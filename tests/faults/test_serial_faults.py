"""Files over bad serial lines, many times: always the right bytes, or a clean failure.

Real pyserial on pseudo-terminals; see :mod:`tests.link.faulty_line` for the faults. Each seed draws
its own mixture of them and its own payload.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s2a_edge.link.blobs import Blob, BlobStore
from s2a_edge.link.serial_transport import SerialTransport
from s2a_edge.link.target import parse_target
from s2a_edge.link.transport import Outgoing
from s2a_edge.spec.errors import LinkError
from tests.link.board_thread import BoardThread
from tests.link.faulty_line import Faults, FaultyLine


@contextmanager
def board_on(line: FaultyLine, root: Path) -> Iterator[BoardThread]:
    agent = [sys.executable, "-S", "-c", "raise SystemExit"]  # only files are moved here
    thread = BoardThread(line.board, root, lambda board: agent)
    try:
        yield thread
    finally:
        thread.stop()


def transfer(folder: Path, faults: Faults, seed: int, size_bytes: int) -> bool:
    """One file over one line; whether it arrived. Wrong bytes fail the test."""
    content = random.Random(seed).randbytes(size_bytes)
    blob = Blob(hashlib.sha256(content).hexdigest(), size_bytes)
    root, source = folder / "board", folder / "payload"
    source.write_bytes(content)
    with FaultyLine(folder, faults, seed) as line, board_on(line, root):
        try:
            target = parse_target(f"serial:{line.host}")
            with QuickTransport(target, patience_s=30) as transport:
                transport.send([Outgoing(blob, source)], lambda n: None)
        except LinkError as error:
            assert "\n" not in str(error)
            return False
    store = BlobStore(root)
    store.admit(blob)  # compares the hash
    return store.path(blob.sha256).read_bytes() == content


class QuickTransport(SerialTransport):
    """Asks the file itself how much is there, not the board's agent, which takes its time."""

    def _held_bytes(self, host: object, blob: Blob) -> int:
        folder = Path(self._target.host).parent
        return BlobStore(folder / "board").held_bytes(blob)


def drawn(seed: int) -> Faults:
    """A mixture of faults: each kind is in about half of the mixtures."""
    draw = random.Random(seed)

    def share(most: float) -> float:
        return draw.choice([0.0, 0.3, 1.0]) * most

    pulls = tuple(sorted(draw.randrange(500, 9_000) for _ in range(draw.choice([0, 0, 0, 1, 2]))))
    return Faults(share(0.01), share(0.01), share(0.001), share(0.001), share(0.0003), pulls)


def run_seeds(folder: Path, seeds: range) -> list[bool]:
    arrived = []
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        arrived.append(transfer(place, drawn(seed), seed, 6_000))
    return arrived


def test_some_seeds(tmp_path: Path) -> None:
    assert all(run_seeds(tmp_path, range(3)))


@pytest.mark.faults_long
@pytest.mark.parametrize("part", range(8))
def test_240_seeds(tmp_path: Path, part: int) -> None:
    arrived = run_seeds(tmp_path, range(1000 + 30 * part, 1030 + 30 * part))
    assert sum(arrived) >= 29  # a clean failure is allowed, but is not the rule


@pytest.mark.faults_long
@pytest.mark.parametrize("tenth", range(10))
def test_the_cable_is_pulled_at_every_tenth(tmp_path: Path, tenth: int) -> None:
    faults = Faults(unplugged_at=(1_000 + 40_000 * tenth // 10,))
    assert transfer(tmp_path, faults, tenth, 40_000)


@pytest.mark.faults_long
@pytest.mark.parametrize("faults", [Faults(damaged=0.01), Faults(lost=0.01)])
def test_one_percent_of_a_longer_file(tmp_path: Path, faults: Faults) -> None:
    assert transfer(tmp_path, faults, 3, 150_000)


@pytest.mark.faults_long
def test_nine_tenths_of_921600_baud(tmp_path: Path) -> None:
    """Payload that cannot be packed, against the clock; the line is 92,160 bytes a second."""
    size_bytes, rate = 1_500_000, 92_160
    shares = []
    for attempt in range(3):  # a busy machine is slower than the line now and then
        folder = tmp_path / str(attempt)
        folder.mkdir()
        started_s = time.monotonic()
        assert transfer(folder, Faults(bytes_per_s=rate), attempt, size_bytes)
        shares.append(size_bytes / (time.monotonic() - started_s) / rate)
        if shares[-1] >= 0.9:
            break
    assert max(shares) >= 0.9, shares
