"""A serial line between two pseudo-terminals, with faults drawn from a seed.

Both ends open a terminal by path, with pyserial; a thread carries bytes between the two masters and
damages, loses, doubles and inserts some on the way, keeps to a speed, or pulls the cable.
"""

from __future__ import annotations

import os
import pty
import random
import select
import termios
import threading
import time
import tty
from dataclasses import dataclass
from pathlib import Path

KERNEL = b"\r\n[  142.318221] tegra-xusb 3610000.usb: xhci_hub_status_data suspended\r\n"
_SPEEDS = {getattr(termios, name): int(name[1:]) for name in dir(termios)
           if name[0] == "B" and name[1:].isdecimal()}  # fmt: skip


@dataclass(frozen=True)
class Faults:
    """What happens to the bytes; shares are of bytes.

    Attributes:
        damaged: one bit is flipped.
        lost: the byte is missing.
        doubled: a run of up to 64 bytes comes twice.
        bursts: a run of up to 64 bytes is replaced by noise.
        messages: a kernel message comes between two bytes.
        unplugged_at: bytes towards the board after which the device vanishes for a moment.
        bytes_per_s: speed; None: as fast as it goes.
        fastest_baud: the line garbles everything above this speed.
    """

    damaged: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    bursts: float = 0.0
    messages: float = 0.0
    unplugged_at: tuple[int, ...] = ()
    bytes_per_s: float | None = None
    fastest_baud: int | None = None


CLEAN = Faults()


class FaultyLine:
    """A running line; a context manager.

    Attributes:
        host: path that the host opens.
        board: path that the board opens.
        carried: bytes that left the host's end so far.
    """

    def __init__(self, folder: Path, faults: Faults = CLEAN, seed: int = 0) -> None:
        self.host, self.board = folder / "ttyHOST", folder / "ttyBOARD"
        self.faults = faults
        self.carried = 0
        self._random = random.Random(seed)
        self._pulls = list(faults.unplugged_at)
        self._stop = threading.Event()
        self._masters: dict[Path, int] = {}
        self._slaves: dict[Path, int] = {}
        for path in (self.host, self.board):
            self._plug(path)
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self) -> FaultyLine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for path in (self.host, self.board):
            self._unplug(path)

    def _plug(self, path: Path) -> None:
        """A new terminal under the same name; its slave is held, so that nobody sees a hang-up."""
        master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._masters[path], self._slaves[path] = master, slave
        temporary = path.with_suffix(".new")
        temporary.symlink_to(os.ttyname(slave))
        temporary.replace(path)

    def _unplug(self, path: Path) -> None:
        os.close(self._slaves.pop(path))
        os.close(self._masters.pop(path))
        path.unlink()

    def _carry(self) -> None:
        waiting = {self.host: bytearray(), self.board: bytearray()}  # by where it goes to
        allowed = {path: (time.monotonic(), 0.0) for path in waiting}
        while not self._stop.is_set():
            by_master = {master: path for path, master in self._masters.items()}
            # Like a device's buffer, this takes no more while much waits to go on.
            reading = [m for m, path in by_master.items() if len(waiting[self._other(path)]) < 4096]
            writing = [m for m, path in by_master.items() if waiting[path]]
            readable, writable, _ = select.select(reading, writing, [], 0.02)
            for master in readable:
                source = by_master[master]
                data = self._read(master)
                if source == self.host and data:
                    self.carried += len(data)
                    if self._pulls and self.carried >= self._pulls[0]:
                        self._pulls.pop(0)
                        self._pull()
                        waiting = {self.host: bytearray(), self.board: bytearray()}
                        break
                waiting[self._other(source)] += self._spoiled(data)
            else:
                for master in writable:
                    self._write(master, waiting[by_master[master]], allowed, by_master[master])

    def _other(self, path: Path) -> Path:
        return self.board if path == self.host else self.host

    def _pull(self) -> None:
        self._unplug(self.host)
        self._stop.wait(0.1)
        self._plug(self.host)

    @staticmethod
    def _read(master: int) -> bytes:
        try:
            return os.read(master, 1024)
        except (BlockingIOError, OSError):
            return b""

    def _write(
        self,
        master: int,
        waiting: bytearray,
        allowed: dict[Path, tuple[float, float]],
        path: Path,
    ) -> None:
        room = len(waiting)
        if self.faults.bytes_per_s is not None:
            now_s, (then_s, spare) = time.monotonic(), allowed[path]
            # What was not used while nothing waited is gone; a little is kept for a late turn.
            spare = min(spare + (now_s - then_s) * self.faults.bytes_per_s, 8192)
            room = min(room, int(spare))
            allowed[path] = (now_s, spare - room)
            if room == 0:
                time.sleep(0.001)
                return
        try:
            written = os.write(master, waiting[:room])
        except (BlockingIOError, OSError):
            written = 0
        del waiting[:written]

    def _spoiled(self, data: bytes) -> bytes:
        if self._is_garbled():
            return bytes(self._random.randrange(256) for _ in data)
        faults, draw = self.faults, self._random.random
        kinds = (faults.damaged, faults.lost, faults.doubled, faults.bursts, faults.messages)
        total = sum(kinds)
        if not total:
            return data
        out, position = bytearray(), 0
        while position < len(data):
            byte, chance = data[position], draw()
            position += 1
            if chance >= total:
                out.append(byte)
                continue
            kind = next(i for i in range(5) if chance < sum(kinds[: i + 1]))
            run = self._random.randrange(1, 65)
            if kind == 0:
                out.append(byte ^ 1 << self._random.randrange(8))
            elif kind == 2:
                out += data[position - 1 : position + run] * 2
                position += run
            elif kind == 3:
                out += self._random.randbytes(run)
                position += run
            elif kind == 4:
                out += bytes([byte]) + KERNEL
        return bytes(out)

    def _is_garbled(self) -> bool:
        """Whether the ends' speeds differ, or are above what the line takes."""
        if self.faults.fastest_baud is None:
            return False
        speeds = {_SPEEDS[termios.tcgetattr(slave)[5]] for slave in self._slaves.values()}
        return len(speeds) > 1 or max(speeds) > self.faults.fastest_baud
