"""The board's end of a serial line, for good: what ``s2a-edge serve-serial`` runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from s2a_edge.link.line import LineLostError
from s2a_edge.link.line_server import LineServer
from s2a_edge.link.serial_device import SerialDevice
from s2a_edge.spec.errors import LinkError

_RETRY_S = 1.0


def serve_serial(
    device: str, root: Path, baud: int, *, once: bool = False, on_note: Callable[[str], None]
) -> None:
    """Serve hosts on a serial device; a device that goes away is waited for.

    Args:
        device: ``/dev/ttyGS0``.
        root: the board's folder.
        baud: speed to begin with, and to come back to.
        once: end when the first host says goodbye, or the device goes away.
        on_note: told when the device comes and goes.

    Raises:
        LinkError: with ``once``, the device cannot be opened.
    """
    command = [sys.executable, "-m", "s2a_edge.link.agent", str(root)]
    told = ""
    while True:
        try:
            line = SerialDevice(device, baud)
        except LinkError as error:
            if once:
                raise
            if error.got != told:  # a gadget port appears when a host is plugged in
                told = error.got
                on_note(f"{device}: {error.got}; waiting for it")
            time.sleep(_RETRY_S)
            continue
        told = ""
        on_note(f"{device}: serving {root} at {baud} baud")
        try:
            LineServer(line, root, lambda board: command, baud).serve()
        except LineLostError as error:
            on_note(f"{device}: {error}")
        finally:
            line.close()
        if once:
            return
