"""``usb:`` and ``links``: what is plugged in.

A Jetson in device mode is a network card, where it is 192.168.55.1, and a serial port; see NVIDIA's
Jetson Linux Developer Guide, "Flashing and Booting the target device", USB device mode. Whether the
network is there is asked of this host's own routing: nothing is sent where no such card is.
"""

from __future__ import annotations

import importlib
import socket
from dataclasses import dataclass
from typing import Any

from s2a_edge.link.target import DEFAULT_ROOT, Target, parse_target
from s2a_edge.spec.errors import LinkError

USB_HOST, USB_NETWORK, SSH_PORT = "192.168.55.1", "192.168.55.", 22
_NVIDIA_VID, _GADGET_PID = 0x0955, 0x7020
_CONNECT_S = 1.0


@dataclass(frozen=True)
class Found:
    """A way that may lead to a board.

    Attributes:
        target: what to give to ``flash``.
        what: in words.
        is_board: whether it is a board's own port, which may be asked without disturbing others.
    """

    target: str
    what: str
    is_board: bool


def find_links() -> tuple[Found, ...]:
    """The USB network, and the serial ports of this host, boards first."""
    found = []
    if has_usb_network():
        found.append(Found(f"ssh://{USB_HOST}/~/s2a-edge", "USB network of a board", True))
    ports = sorted(_serial_ports(), key=lambda port: (_rank(port), port.device))
    for port in ports:
        what = " ".join(str(port.description or "").split())[:60]
        what = "serial port" if what in ("", "n/a") else what
        found.append(Found(f"serial:{port.device}", what, _rank(port) < 2))
    return tuple(found)


def has_usb_network() -> bool:
    """Whether this host is in the network that a board in device mode makes, and it answers."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((USB_HOST, SSH_PORT))  # of a datagram socket: a look at the routes
            if not str(probe.getsockname()[0]).startswith(USB_NETWORK):
                return False
        socket.create_connection((USB_HOST, SSH_PORT), _CONNECT_S).close()
    except OSError:
        return False
    return True


def resolve_usb(target: Target) -> Target:
    """The ssh or serial target of the board that is plugged in.

    Raises:
        LinkError: there is none, or more than one.
    """
    options = dict(target.options)
    if has_usb_network():
        user = f"{options['user']}@" if "user" in options else ""
        root = target.root if target.root.startswith("/") else f"/{target.root}"
        python = f"?python={options['python']}" if "python" in options else ""
        return parse_target(f"ssh://{user}{USB_HOST}:{SSH_PORT}{root}{python}")
    ports = [port.device for port in _serial_ports() if _rank(port) == 0]
    if len(ports) != 1:
        raise LinkError(
            where=target.text,
            expected="a board in device mode on USB",
            got=f"{len(ports)} of them: {', '.join(ports)}" if ports else "none",
            todo="`s2a-edge links` shows what there is; name it, serial:/dev/ttyACM0",
        )
    kept: dict[str, str] = {n: options[n] for n in ("baud", "user") if n in options}
    if target.root != DEFAULT_ROOT:
        kept["root"] = target.root
    query = "&".join(f"{name}={value}" for name, value in kept.items())
    return parse_target(f"serial:{ports[0]}" + (f"?{query}" if query else ""))


def _rank(port: Any) -> int:
    """0: a board's gadget port, 1: another port of NVIDIA's, 2: any other."""
    if port.vid != _NVIDIA_VID:
        return 2
    return 0 if port.pid == _GADGET_PID else 1


def _serial_ports() -> list[Any]:
    try:
        ports = importlib.import_module("serial.tools.list_ports")
    except ImportError:
        return []  # without pyserial no serial port can be used either
    return list(ports.comports())
