"""The board's end with a host that went away, or takes nothing."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2a_edge.link.framing import encode_frame
from s2a_edge.link.line import HELLO, FdLine, control_frame
from s2a_edge.link.line_server import SESSION_S, LineServer
from s2a_edge.link.messages import encode, success
from s2a_edge.link.stream_messages import ANSWER, pack_message


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def host_and_server(tmp_path: Path) -> Iterator[tuple[socket.socket, LineServer, Clock]]:
    host, board = socket.socketpair()
    with host, board:
        server = LineServer(FdLine(board.fileno(), board.fileno()), tmp_path, lambda _: ["false"])
        server.end.clock = clock = Clock()
        host.sendall(encode_frame(control_frame(HELLO, 7)))
        server.step(0.0)
        assert server.end.channel is not None
        yield host, server, clock
        server.close()


def test_a_host_that_reads_nothing_costs_no_time(
    host_and_server: tuple[socket.socket, LineServer, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that cannot leave must not make the board turn and turn."""
    _, server, clock = host_and_server
    assert server.end.channel is not None
    server.end.channel.sender.write(pack_message(ANSWER, encode(success("x" * 100_000))))
    monkeypatch.setattr(FdLine, "write", lambda self, data: 0)  # a full device
    waits: list[float] = []
    ready = select.select

    def wait(
        reading: list[int], writing: list[int], errors: list[int], wait_s: float
    ) -> tuple[list[int], list[int], list[int]]:
        waits.append(wait_s)
        clock.now_s += wait_s
        return ready(reading, [], errors, 0)

    monkeypatch.setattr("select.select", wait)
    for _ in range(100):
        server.step(0.2)
    assert min(waits[10:]) == 0.2


def test_a_session_ends_when_its_host_is_gone(
    host_and_server: tuple[socket.socket, LineServer, Clock],
) -> None:
    _, server, clock = host_and_server
    clock.now_s = SESSION_S - 1
    server.step(0.0)
    assert server.end.channel is not None
    clock.now_s = SESSION_S + 1
    server.step(0.0)
    assert server.end.channel is None
