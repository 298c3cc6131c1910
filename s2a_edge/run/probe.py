"""What board this is: read from its files, matched to a device profile.

A file of the board that is missing or holds junk leaves its fact empty and never raises. Evidence
for the module, strongest first (:mod:`s2a_edge.run.board_match` weighs it):

1. ``/etc/nv_boot_control.conf``, ``TNSPEC 3767-300-0005-…``: written when the board was flashed;
2. ``/proc/device-tree/compatible``, NUL-separated, ``nvidia,p3768-0000+p3767-0005``;
3. ``/proc/device-tree/model``: names the developer kit, which may hold another module;
4. ``MemTotal``.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.run.board_match import Match, match_board
from s2a_edge.run.cgroup_memory import CgroupMemory, read_cgroup_memory, read_text
from s2a_edge.run.process_memory import read_sizes
from s2a_edge.spec.device_profile import list_profiles
from s2a_edge.spec.units import KIB

_HOST = Path("/")
_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([0-9.]+)")
_MAX_ZONES = 64


@dataclass(frozen=True)
class ThermalZone:
    """A temperature sensor: its name (``tj-thermal``) and its reading in degrees Celsius."""

    name: str
    temperature_c: float


@dataclass(frozen=True)
class SwapDevice:
    """An active swap area.

    Attributes:
        path: ``/dev/zram0`` or a file.
        size_bytes: its size.
        used_bytes: what is in it.
        zram: compressed memory, not storage: it gives no room to GPU pages and takes some of RAM.
    """

    path: str
    size_bytes: int
    used_bytes: int
    zram: bool


@dataclass(frozen=True)
class BoardFacts:
    """What is known of this machine; None or empty where it could not be read.

    Attributes:
        profile: name of the best-matching device profile.
        reason: why that one, or why none.
        tnspec: value of TNSPEC.
        compatible: entries of the device tree's ``compatible``.
        model: the device tree's ``model``.
        l4t_release: ``36.4.3``.
        mem_total_bytes: ``MemTotal``.
        mem_available_bytes: ``MemAvailable``, not bounded by ``cgroup``.
        cgroup: the tightest memory limit above this process.
        zram_bytes: sizes of all zram devices together, in use as swap or not.
        swaps: active swap areas.
        thermal_zones: sensors that gave a reading.
        cpu_count: processors that this process may run on; of this host, None for another root.
        python: version of this interpreter; None for another root.
        onnxruntime: version, or None where it cannot be imported.
        providers: execution providers of that onnxruntime.
    """

    profile: str | None
    reason: str
    tnspec: str | None
    compatible: tuple[str, ...]
    model: str | None
    l4t_release: str | None
    mem_total_bytes: int | None
    mem_available_bytes: int | None
    cgroup: CgroupMemory | None
    zram_bytes: int
    swaps: tuple[SwapDevice, ...]
    thermal_zones: tuple[ThermalZone, ...]
    cpu_count: int | None
    python: str | None
    onnxruntime: str | None
    providers: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The facts as JSON-ready values."""
        return dataclasses.asdict(self)


def detect(root: Path = _HOST) -> BoardFacts:
    """Read the facts of the machine whose file system is at ``root``.

    Args:
        root: ``/``, or a copy of another machine's files; facts that are not files (processors,
            Python, onnxruntime) are read only for ``/``.

    Raises:
        DeviceError: this installation's own device profiles are missing or malformed.
    """
    meminfo = read_sizes(root / "proc/meminfo")
    tnspec = _tnspec(root)
    compatible = _strings(read_text(root / "proc/device-tree/compatible"))
    model = next(iter(_strings(read_text(root / "proc/device-tree/model"))), None)
    mem_total_bytes = meminfo.get("MemTotal")
    match: Match = match_board(
        list_profiles(),
        tnspec=tnspec,
        compatible=compatible,
        model=model,
        mem_total_bytes=mem_total_bytes,
    )
    here = root == _HOST
    version, providers = _onnxruntime() if here else (None, ())
    return BoardFacts(
        profile=match.profile,
        reason=match.reason,
        tnspec=tnspec,
        compatible=compatible,
        model=model,
        l4t_release=_l4t_release(root),
        mem_total_bytes=mem_total_bytes,
        mem_available_bytes=meminfo.get("MemAvailable"),
        cgroup=read_cgroup_memory(root),
        zram_bytes=_zram_bytes(root),
        swaps=_swaps(root),
        thermal_zones=_thermal_zones(root),
        cpu_count=_cpu_count() if here else None,
        python=platform.python_version() if here else None,
        onnxruntime=version,
        providers=providers,
    )


def _strings(text: str) -> tuple[str, ...]:
    """The printable strings of a NUL-separated device-tree property."""
    return tuple(
        part for part in (p.strip() for p in text.split("\0")) if part.isprintable() and part
    )


def _tnspec(root: Path) -> str | None:
    for line in read_text(root / "etc/nv_boot_control.conf").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "TNSPEC" and words[1].isprintable():
            return words[1]
    return None


def _l4t_release(root: Path) -> str | None:
    found = _RELEASE.search(read_text(root / "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2].strip('.')}" if found else None


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _integer(text: str) -> int | None:
    found = re.fullmatch(r"\s*(-?[0-9]{1,18})\s*", text)
    return int(found[1]) if found else None


def _zram_bytes(root: Path) -> int:
    devices = _entries(root / "sys/block", "zram*")
    return sum(_integer(read_text(device / "disksize")) or 0 for device in devices)


def _swaps(root: Path) -> tuple[SwapDevice, ...]:
    """``/proc/swaps``: Filename, Type, Size and Used in KiB, Priority, after a heading."""
    swaps = []
    for line in read_text(root / "proc/swaps").splitlines()[1:]:
        words = line.split()
        size, used = (_integer(word) for word in words[2:4]) if len(words) == 5 else (None, None)
        if size is not None and used is not None:
            zram = Path(words[0]).name.startswith("zram")
            swaps.append(SwapDevice(words[0], size * KIB, used * KIB, zram))
    return tuple(swaps)


def _thermal_zones(root: Path) -> tuple[ThermalZone, ...]:
    zones = []
    for folder in _entries(root / "sys/class/thermal", "thermal_zone*")[:_MAX_ZONES]:
        # Sensors of powered-down units refuse to be read, and some report -256000.
        millidegrees = _integer(read_text(folder / "temp"))
        if millidegrees is not None and -100_000 < millidegrees < 300_000:
            name = read_text(folder / "type").strip() or folder.name
            zones.append(ThermalZone(name, millidegrees / 1000))
    return tuple(zones)


def _cpu_count() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _onnxruntime() -> tuple[str | None, tuple[str, ...]]:
    try:
        module = importlib.import_module("onnxruntime")
        return str(module.__version__), tuple(map(str, module.get_available_providers()))
    except (ImportError, OSError, AttributeError, RuntimeError):
        # A wheel for another CUDA release fails in its own ways; there is none that works, then.
        return None, ()
