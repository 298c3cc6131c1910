from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from s2a_edge.cli import app
from s2a_edge.link import usb
from s2a_edge.link.target import parse_target
from s2a_edge.link.usb import find_links, has_usb_network, resolve_usb
from s2a_edge.spec.errors import LinkError


def port(device: str, vid: int | None = None, pid: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(device=device, vid=vid, pid=pid, description="a  port")


@pytest.fixture(autouse=True)
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network of a board, no ports: a test says what is there. Only loopback is ever asked."""
    monkeypatch.setattr(usb, "USB_HOST", "127.0.0.1")
    monkeypatch.setattr(usb, "USB_NETWORK", "192.168.55.")
    monkeypatch.setattr(usb, "_serial_ports", list)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A board in device mode, on loopback."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(usb, "USB_NETWORK", "127.0.0.")
        monkeypatch.setattr(usb, "SSH_PORT", server.getsockname()[1])
        yield int(server.getsockname()[1])


def test_the_network_comes_first(network: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usb, "_serial_ports", lambda: [port("/dev/ttyACM0", 0x0955, 0x7020)])
    found = resolve_usb(parse_target("usb:?user=nvidia&python=/venv/bin/python"))
    assert (found.kind, found.host, found.port, found.user) == (
        "ssh",
        "127.0.0.1",
        network,
        "nvidia",
    )
    assert (found.root, found.options) == ("~/s2a-edge", {"python": "/venv/bin/python"})
    assert resolve_usb(parse_target("usb:/data/s2a")).root == "/data/s2a"


def test_a_host_outside_that_network_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert not has_usb_network()


def test_else_the_gadget_port(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [port("/dev/ttyUSB0", 0x0403, 0x6001), port("/dev/ttyACM1", 0x0955, 0x7020)]
    monkeypatch.setattr(usb, "_serial_ports", lambda: ports)
    found = resolve_usb(parse_target("usb:/data/s2a?baud=921600"))
    assert (found.kind, found.host, found.root) == ("serial", "/dev/ttyACM1", "/data/s2a")
    assert found.options["baud"] == "921600"
    ports.append(port("/dev/ttyACM2", 0x0955, 0x7020))
    with pytest.raises(LinkError, match="2 of them: /dev/ttyACM1, /dev/ttyACM2"):
        resolve_usb(parse_target("usb:"))


def test_nothing_plugged_in() -> None:
    with pytest.raises(LinkError, match="s2a-edge links"):
        resolve_usb(parse_target("usb:"))
    done = CliRunner().invoke(app, ["links"])
    assert (done.exit_code, "nothing found" in done.stdout) == (0, True)


def test_links_asks_boards_only(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    ports = [port("/dev/ttyUSB0"), port(f"{tmp_path}/none", 0x0955, 0x7045)]
    monkeypatch.setattr(usb, "_serial_ports", lambda: ports)
    assert [found.is_board for found in find_links()] == [True, False]
    done = CliRunner().invoke(app, ["links"])
    assert "serial:/dev/ttyUSB0" in done.stdout
    assert "not asked: name it to ask" in done.stdout
    done = CliRunner().invoke(app, ["links", f"dir:{tmp_path}"])
    assert " of " in done.stdout  # memory
