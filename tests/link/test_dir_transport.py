from __future__ import annotations

from pathlib import Path

import pytest

from s2a_edge.link.dir_transport import DirTransport
from s2a_edge.link.install import BoardChecks
from tests.link.contract import TransportContract, Way


class TestDirTransport(TransportContract):
    @pytest.fixture
    def board(self, tmp_path: Path) -> Path:
        return tmp_path / "board"

    @pytest.fixture
    def way(self, board: Path, checks: BoardChecks) -> Way:
        return lambda: DirTransport(board, checks)
