"""Tells systemd that training has begun, goes on, or ends: the protocol of sd_notify(3).

One datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names; without that
variable nothing happens. ``$WATCHDOG_PID`` is not looked at: under ``s2a-edge start`` the service's
main process is our parent, and a unit with ``NotifyAccess=all`` takes our word for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

_PINGS_PER_PERIOD = 4
"""sd_watchdog_enabled(3) asks for two; a late one must not be the last."""


class ServiceNotifier:
    """What a training loop tells the service manager.

    A manager that cannot be reached is none of training's business: nothing is raised.

    Args:
        address: of the socket: an absolute path, or ``@name`` for an abstract one; None: be silent.
        watchdog_s: after how many silent seconds the manager ends us; None: it does not.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._interval_s = None if watchdog_s is None else watchdog_s / _PINGS_PER_PERIOD
        self._last_s: float | None = None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> ServiceNotifier:
        """By ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` (microseconds), as systemd sets them."""
        address = environment.get("NOTIFY_SOCKET", "")
        period = environment.get("WATCHDOG_USEC", "")
        # Whatever else stands there (vsock:, say) is no socket of this machine.
        known = len(address) > 1 and address[0] in "/@"
        watches = period.isascii() and period.isdecimal() and int(period) > 0
        return cls(address if known else None, int(period) / 1e6 if watches else None)

    def ready(self) -> None:
        """Training begins; the manager's watchdog counts from here."""
        self._last_s = time.monotonic()
        self._send("READY=1\nSTATUS=training")

    def alive(self, status: str) -> None:
        """The loop goes on; sent at most four times in a watchdog period.

        Args:
            status: one line for ``systemctl status``.
        """
        now_s = time.monotonic()
        if self._interval_s is None:
            return
        if self._last_s is None or now_s - self._last_s >= self._interval_s:
            self._last_s = now_s
            self._send(f"WATCHDOG=1\nSTATUS={' '.join(status.split())}")

    def stopping(self) -> None:
        """A request to stop has been seen; what is left is to save."""
        self._send("STOPPING=1\nSTATUS=saving the last step")

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        # An abstract socket's name begins with a zero byte, which no variable can hold.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager,
        ):
            manager.setblocking(False)  # a full queue must not hold up training
            manager.sendto(text.encode(), address)
