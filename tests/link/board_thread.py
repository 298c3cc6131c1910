"""The board's end of a line, in a thread of the test."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from s2a_edge.link.line import LineLostError
from s2a_edge.link.line_server import AgentCommand, LineServer
from s2a_edge.link.serial_device import SerialDevice
from s2a_edge.spec.errors import LinkError


class BoardThread:
    """Serves a device like ``serve-serial``; can be restarted like a board."""

    def __init__(self, device: Path, root: Path, agent: AgentCommand, baud: int = 115_200) -> None:
        self._make = (device, root, agent, baud)
        self.error: BaseException | None = None
        self._start()

    def _start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # whatever it is, the test must see it
            self.error = error

    def _serve(self) -> None:
        device, root, agent, baud = self._make
        while not self._stop.is_set():
            with contextlib.suppress(LinkError, LineLostError):
                line = SerialDevice(str(device), baud)
                server = LineServer(line, root, agent, baud)
                try:
                    while not self._stop.is_set():
                        server.step(0.05)
                finally:
                    server.close()
                    line.close()
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        if self.error is not None:
            raise self.error

    def restart(self) -> None:
        """What the board had in memory is gone."""
        self.stop()
        self._start()
