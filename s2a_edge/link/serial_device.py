"""A serial device through pyserial, as a line."""

from __future__ import annotations

import errno
import importlib
import os
import select
import termios
from typing import Any, cast

from s2a_edge.spec.errors import LinkError, UsageError


class SerialDevice:
    """An open serial device; eight bits, no parity, no flow control.

    Args:
        path: ``/dev/ttyACM0``.
        baud: speed to begin with.

    Raises:
        LinkError: it cannot be opened, or somebody else has it.
        UsageError: pyserial is missing, or the device does not know the speed.
    """

    def __init__(self, path: str, baud: int) -> None:
        serial = _library()
        try:
            self._port: Any = serial.Serial(
                path, baud, timeout=0, write_timeout=0, exclusive=True, rtscts=False
            )
        except ValueError as error:
            raise UsageError(
                where=path, expected="a speed that the device knows", got=str(baud), todo=str(error)
            ) from error
        except (serial.SerialException, OSError, termios.error) as error:
            raise _cannot_open(path, error) from error
        # What pyserial lets through when a device vanishes under its hands.
        self._errors: Any = (serial.SerialException, TypeError, termios.error)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return cast(int, self._port.fileno())

    def read(self) -> bytes:
        """What is there; empty where the device is gone."""
        try:
            return cast(bytes, self._port.read(65_536))
        except self._errors:  # pyserial's way to say that the device has ended
            return b""

    def write(self, data: bytes) -> int:
        """Write what goes without waiting."""
        if not select.select([], [self._port.fileno()], [], 0)[1]:
            return 0
        try:
            return int(self._port.write(data) or 0)
        except self._errors as error:
            raise OSError(5, str(error)) from error  # EIO: the device is gone

    def set_speed(self, baud: int) -> bool:
        """Change the speed, if the device knows it."""
        before = self._port.baudrate
        try:
            self._port.baudrate = baud
        except (ValueError, *self._errors):
            self._port.baudrate = before
            return False
        return True

    def drain(self) -> None:
        """Wait until what was written has left."""
        try:
            self._port.flush()
        except self._errors:
            return

    def close(self) -> None:
        """Let go of the device; what is still to be written is thrown away."""
        try:
            self._port.reset_output_buffer()
        except (*self._errors, OSError):
            pass  # it is gone already
        self._port.close()


def _cannot_open(path: str, error: Exception) -> LinkError:
    """What pyserial wraps and repeats, said once."""
    code = getattr(error, "errno", None)
    todo = "check the cable, and who else has it open"
    if code == errno.ENOENT:
        todo = "check the cable; `s2a-edge links` lists the ports that there are"
    elif code == errno.EACCES:
        todo = "join the group of the device: sudo usermod -aG dialout $USER, then log in again"
    got = os.strerror(code).lower() if code else " ".join(str(error).split())[:200]
    return LinkError(
        where=path, expected="a serial device that can be opened", got=got, todo=todo
    )


def _library() -> Any:
    try:
        return importlib.import_module("serial")
    except ImportError as error:
        raise UsageError(
            where="serial:",
            expected="the Python package pyserial",
            got="none that can be imported",
            todo="pip install 's2a-edge[serial]'",
        ) from error
