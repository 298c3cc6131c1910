"""What a process uses and what the machine has left, from Linux's ``/proc``.

Resident memory is *anonymous* (heap, arena), *file* (mapped weights and libraries; the kernel may
drop clean pages and read them again) and *shared*. A budget counts all three. ``VmHWM`` is the
peak of the sum since the process started or since :func:`reset_peak`.

Source: ``proc_pid_status(5)``, ``proc_meminfo(5)``, ``proc_pid_smaps(5)``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.run.cgroup_memory import read_cgroup_memory, read_text
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.units import KIB

_RESET_PEAK = "5"  # proc_pid_clear_refs(5): set VmHWM to the current resident size


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of one process, in bytes.

    Attributes:
        rss_bytes: resident now, all kinds.
        anon_bytes: resident, anonymous.
        file_bytes: resident, mapped from files.
        shmem_bytes: resident, shared memory.
        peak_rss_bytes: the most that was resident.
        pss_bytes: resident, pages shared with other processes counted in parts; None where the
            kernel does not tell.
        swap_bytes: swapped out.
    """

    rss_bytes: int
    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    peak_rss_bytes: int
    pss_bytes: int | None
    swap_bytes: int


def read_memory(pid: int | str = "self", *, root: Path = Path("/")) -> ProcessMemory:
    """Memory of a process.

    Args:
        pid: process id, or ``self``.
        root: where ``proc`` is.

    Raises:
        DeviceError: this is not Linux, or there is no such process.
    """
    folder = root / "proc" / str(pid)
    status = read_sizes(folder / "status")
    if "VmRSS" not in status:
        raise _not_linux(str(folder / "status"), "a process with VmRSS")
    rollup = read_sizes(folder / "smaps_rollup")
    rss_bytes = status["VmRSS"]
    return ProcessMemory(
        rss_bytes=rss_bytes,
        anon_bytes=status.get("RssAnon", 0),
        file_bytes=status.get("RssFile", 0),
        shmem_bytes=status.get("RssShmem", 0),
        # The kernel syncs its counters lazily: VmHWM can lag behind VmRSS by a few pages.
        peak_rss_bytes=max(status.get("VmHWM", 0), rss_bytes),
        pss_bytes=rollup.get("Pss"),
        swap_bytes=status.get("VmSwap", 0),
    )


def available_bytes(*, root: Path = Path("/")) -> int:
    """Memory that can be allocated without swapping: ``MemAvailable``, within the cgroup's limit.

    ``MemFree`` and CUDA's own free memory are no measure: both shrink with the page cache.

    Args:
        root: where ``proc`` and ``sys`` are.

    Raises:
        DeviceError: this is not Linux.
    """
    meminfo = read_sizes(root / "proc/meminfo")
    if "MemAvailable" not in meminfo:
        raise _not_linux(str(root / "proc/meminfo"), "MemAvailable")
    group = read_cgroup_memory(root)
    if group is None:
        return meminfo["MemAvailable"]
    return min(meminfo["MemAvailable"], group.available_bytes)


def reset_peak(*, root: Path = Path("/")) -> bool:
    """Start the peak (``VmHWM``) anew at what is resident now.

    Args:
        root: where ``proc`` is.

    Returns:
        Whether the kernel let us; where it does not, the peak covers the whole process's life.
    """
    clear_refs = root / "proc/self/clear_refs"
    if not clear_refs.exists():
        return False
    try:
        clear_refs.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def read_sizes(path: Path) -> dict[str, int]:
    """The ``Name: 123 kB`` lines of a ``/proc`` file, in bytes; other lines are passed over.

    Args:
        path: ``/proc/meminfo``, ``/proc/self/status``, …; if unreadable, the result is empty.
    """
    sizes = {}
    for line in read_text(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isascii() and words[0].isdigit():
            sizes[name.strip()] = int(words[0][:18]) * KIB
    return sizes


def _not_linux(where: str, expected: str) -> DeviceError:
    return DeviceError(
        where=where,
        expected=f"{expected}, as Linux has it",
        got=f"nothing on {sys.platform}",
        todo="run this on Linux; it measures memory through /proc",
    )
