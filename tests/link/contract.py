"""What every transport must do; each has a test class that inherits this one.

The fixture ``board`` is the board's folder as this machine sees it, ``way`` opens a transport to it
whose board checks cost nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from s2a_edge.link.blobs import Blob
from s2a_edge.link.flash import flash
from s2a_edge.link.releases import Releases
from s2a_edge.link.transport import Incoming, Outgoing, Transport
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import (
    BundleIntegrityError,
    LinkError,
    SignatureError,
    StorageError,
)
from s2a_edge.spec.signing_key import generate_key

Way = Callable[[], Transport]
CONTENT = bytes((i * i) % 251 for i in range(300_000))
BLOB = Blob(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
ASKED = [[BLOB.sha256, BLOB.size_bytes]]


def quiet(text: str) -> None:
    """Notes are not what is tested here."""


class TransportContract:
    @pytest.fixture
    def transport(self, way: Way) -> Any:
        with ExitStack() as stack:
            yield stack.enter_context(way())

    def test_the_board_tells_of_itself(self, transport: Transport) -> None:
        found = transport.call({"op": "hello"}, quiet)
        assert found["free_bytes"] > 0
        assert found["protocol"] == 1

    def test_files_arrive_also_from_where_they_ended(
        self, transport: Transport, board: Path, tmp_path: Path
    ) -> None:
        source = tmp_path / "it's a [file] *.bin"
        source.write_bytes(CONTENT)
        (tmp_path / "empty").touch()
        empty = Blob(hashlib.sha256(b"").hexdigest(), 0)
        held = transport.call({"op": "held", "blobs": ASKED}, quiet)
        assert held == {BLOB.sha256: 0}
        (board / "incoming" / BLOB.sha256).write_bytes(CONTENT[:100_001])
        held = transport.call({"op": "held", "blobs": ASKED}, quiet)
        assert held == {BLOB.sha256: 100_001}
        told: list[int] = []
        files = [Outgoing(BLOB, source, 100_001), Outgoing(empty, tmp_path / "empty")]
        transport.send(files, told.append)
        assert sum(told) == len(CONTENT) - 100_001
        transport.call({"op": "admit", "blobs": [*ASKED, [empty.sha256, 0]]}, quiet)
        assert (board / "blobs" / BLOB.sha256).read_bytes() == CONTENT
        assert transport.call({"op": "held", "blobs": ASKED}, quiet) == {BLOB.sha256: len(CONTENT)}

    def test_damaged_bytes_are_refused_and_sent_again(
        self, transport: Transport, board: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(CONTENT)
        transport.call({"op": "held", "blobs": ASKED}, quiet)
        (board / "incoming" / BLOB.sha256).write_bytes(b"\1" * 1000)
        transport.send([Outgoing(BLOB, tmp_path / "file", 1000)], lambda n: None)
        with pytest.raises(BundleIntegrityError, match="flash again"):
            transport.call({"op": "admit", "blobs": ASKED}, quiet)
        assert transport.call({"op": "held", "blobs": ASKED}, quiet) == {BLOB.sha256: 0}

    def test_errors_keep_their_kind(self, transport: Transport, board: Path) -> None:
        with pytest.raises(LinkError, match="dance"):
            transport.call({"op": "dance"}, quiet)
        with pytest.raises(StorageError, match="free some space"):
            transport.call({"op": "held", "blobs": [["0" * 64, 2**39]]}, quiet)
        (board / "trust").mkdir(parents=True)
        generate_key(board / "trust" / "ours")
        with pytest.raises(SignatureError):
            transport.call({"op": "offer", "sums": "", "signature": None}, quiet)
        with pytest.raises(SignatureError, match="no signed offer"):
            transport.call({"op": "held", "blobs": ASKED}, quiet)

    def test_a_bundle_is_flashed_and_rolled_back(
        self, transport: Transport, board: Path, bundles: Path
    ) -> None:
        done = {}
        for name in ("a", "b"):
            with Bundle.open(bundles / name) as bundle:
                done[name] = flash(bundle, transport)
        releases = Releases(board)
        assert releases.current() == done["b"].release
        assert (done["b"].previous, done["b"].step_ms) == (done["a"].release, 7.0)
        assert done["b"].there_bytes > done["b"].sent_bytes
        Bundle.open(board / "current").close()
        transport.call({"op": "rollback"}, quiet)
        assert releases.current() == done["a"].release
        found = transport.call({"op": "status"}, quiet)
        assert found["previous"] == done["b"].release

    def test_files_come_back(self, transport: Transport, board: Path, tmp_path: Path) -> None:
        (board / "runs" / "n 1").mkdir(parents=True)
        grown = CONTENT + b"what was written since it was announced"
        (board / "runs" / "n 1" / "metrics.jsonl").write_bytes(grown)
        told: list[int] = []
        wanted = Incoming("runs/n 1/metrics.jsonl", BLOB, tmp_path / "came")
        transport.fetch([wanted], told.append)
        assert (tmp_path / "came").read_bytes() == CONTENT
        assert sum(told) == len(CONTENT)
