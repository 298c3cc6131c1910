"""Is memory getting short around the process: on the machine, or in the control group it is in.

Looked at, each with a headroom that must stay free: ``MemAvailable``, and the tightest limit of a
control group (v1 ``memory.limit_in_bytes``; v2 ``memory.max`` and ``memory.high``). Cached files
count as free, as they do in ``MemAvailable``; that dropping them hurts, because mapped weights are
read again and again, is what *pressure* tells: the share of time in which every task was stalled
for memory (PSI, ``full avg10``). It counts only where little is left too, since a stall of
somebody else is not cured by our giving memory back.

Source: the kernel's ``Documentation/accounting/psi.rst``, ``proc_meminfo(5)``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.run.cgroup_memory import CgroupMemory, read_cgroup_memory, read_text
from s2a_edge.run.process_memory import read_sizes
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.units import MIB, format_bytes

HEADROOM_SHARE = 0.02
LEAST_HEADROOM_BYTES, MOST_HEADROOM_BYTES = 8 * MIB, 256 * MIB
STALLED_PERCENT = 10.0
"""Of the last ten seconds: a machine that stands still for one of them makes no progress."""
PRESSURE_BELOW = 4
"""Pressure counts while less than so many headrooms are left."""
SETTLING_S = 20.0
"""The average of ten seconds still holds what was before a step down."""
_FULL = re.compile(r"^full avg10=([0-9]+(?:\.[0-9]+)?)", re.MULTILINE)


@dataclass(frozen=True)
class Shortage:
    """Where memory is short, and by how much.

    Attributes:
        source: what was read.
        available_bytes: what is left there.
        headroom_bytes: what should be.
        stalled_percent: of the last ten seconds, where pressure decided; else None.
    """

    source: str
    available_bytes: int
    headroom_bytes: int
    stalled_percent: float | None = None

    @property
    def missing_bytes(self) -> int:
        """What would have to be given back; 0 where pressure decided."""
        return max(0, self.headroom_bytes - self.available_bytes)

    def error(self, where: str) -> BudgetError:
        """The error of a run that has to end or to shrink for it."""
        left = f"{format_bytes(self.available_bytes)} left by {self.source}"
        if self.stalled_percent is not None:
            left += f", every task stalled for {self.stalled_percent:.0f} % of ten seconds"
        return BudgetError(
            where=where,
            expected=f"{format_bytes(self.headroom_bytes)} of memory to stay free",
            got=left,
            todo="end other programs, or resume with a smaller --micro-batch; the last checkpoint "
            "is intact",
            missing_bytes=self.missing_bytes,
        )


@dataclass(frozen=True)
class Room:
    """What a process may still take before memory is short around it.

    Attributes:
        source: what was read.
        free_bytes: beside the headroom; what the process holds already is not in it.
    """

    source: str
    free_bytes: int


def default_headroom_bytes(total_bytes: int) -> int:
    """Two percent of a machine or a group, within 8 and 256 MiB."""
    share_bytes = int(HEADROOM_SHARE * total_bytes)
    return min(MOST_HEADROOM_BYTES, max(LEAST_HEADROOM_BYTES, share_bytes))


class HeadroomWatch:
    """Looks whether memory is short.

    Args:
        headroom_bytes: what must stay free; None: :func:`default_headroom_bytes` of each place.
        root: where ``proc`` and ``sys`` are.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        headroom_bytes: int | None = None,
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._headroom_bytes = headroom_bytes
        self._root = root
        self._clock = clock
        self._pressure_from_s = 0.0

    def settle(self) -> None:
        """Memory was just given back: leave pressure out until its average shows it."""
        self._pressure_from_s = self._clock() + SETTLING_S

    def room(self) -> Room | None:
        """What is left around the process where that is least; None where nothing tells."""
        rooms = [
            Room(place.source, max(0, place.available_bytes - place.headroom_bytes))
            for place in self._places(read_cgroup_memory(self._root))
        ]
        return min(rooms, key=lambda room: room.free_bytes, default=None)

    def shortage(self) -> Shortage | None:
        """Where memory is short right now, the worst of several; None where it is not."""
        group = read_cgroup_memory(self._root)
        places = self._places(group)
        short = [place for place in places if place.missing_bytes]
        if short:
            return max(short, key=lambda place: place.missing_bytes)
        return self._stalled(places, group)

    def _places(self, group: CgroupMemory | None) -> list[Shortage]:
        return [place for place in (self._machine(), self._group(group)) if place is not None]

    def _machine(self) -> Shortage | None:
        sizes = read_sizes(self._root / "proc/meminfo")
        if "MemAvailable" not in sizes:
            return None
        total_bytes = sizes.get("MemTotal", 0)
        return Shortage("MemAvailable", sizes["MemAvailable"], self._headroom(total_bytes))

    def _group(self, group: CgroupMemory | None) -> Shortage | None:
        if group is None:
            return None
        left_bytes = min(group.limit_bytes, group.available_bytes + group.active_cache_bytes)
        source = f"{group.limit_name} of {group.path}"
        return Shortage(source, left_bytes, self._headroom(group.limit_bytes))

    def _headroom(self, total_bytes: int) -> int:
        wanted = self._headroom_bytes
        return default_headroom_bytes(total_bytes) if wanted is None else wanted

    def _stalled(self, places: list[Shortage], group: CgroupMemory | None) -> Shortage | None:
        if self._clock() < self._pressure_from_s:
            return None
        files = [self._root / "proc/pressure/memory"]
        if group is not None and group.version == 2:
            files.insert(0, Path(group.path) / "memory.pressure")
        found = next((m for m in (_FULL.search(read_text(f)) for f in files) if m), None)
        if found is None or float(found[1]) < STALLED_PERCENT:
            return None
        for place in places:
            if place.available_bytes < PRESSURE_BELOW * place.headroom_bytes:
                return Shortage(
                    place.source, place.available_bytes, place.headroom_bytes, float(found[1])
                )
        return None
