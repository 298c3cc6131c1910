"""What else of a machine decides whether training goes well, read from its files.

Besides :mod:`s2a_edge.run.probe`: power mode, desktop, huge pages, overcommit, processors that are
on, Python and ONNX Runtime below another root, free disk. A file that is missing or holds junk
leaves its fact empty.

Sources: ``nvpmodel`` keeps its mode in ``/var/lib/nvpmodel/status`` (``pmode:0002``) and the modes'
names in ``/etc/nvpmodel.conf`` (``< POWER_MODEL ID=2 NAME=MAXN_SUPER >``); ``proc_sys_vm(5)``;
``systemd.special(7)`` for ``default.target``.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.run.cgroup_memory import read_text
from s2a_edge.run.probe import BoardFacts

_HOST = Path("/")
_MODE = re.compile(r"pmode:\s*(\d{1,4})")
_MODE_NAME = re.compile(r"<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([A-Za-z0-9_.-]{1,40})\s*>")
_DEFAULT_MODE = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=(\d{1,4})\s*>")
_PYTHON = re.compile(r"python(3\.\d{1,2})")
_PACKAGE = re.compile(r"onnxruntime(?:_gpu)?-(\d+\.\d+[0-9.]*)[A-Za-z0-9.+_-]*\.dist-info")
_PACKAGE_FOLDERS = (
    "usr/lib/python3*/dist-packages",
    "usr/lib/python3*/site-packages",
    "usr/local/lib/python3*/dist-packages",
    "usr/local/lib/python3*/site-packages",
)


@dataclass(frozen=True)
class PowerMode:
    """A power mode of the board: its number, its name, and the names of all modes."""

    number: int
    name: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Health:
    """Facts of a machine; None where they could not be read.

    Attributes:
        power_mode: of a Jetson.
        desktop: a graphical session starts with the system.
        overcommit: 0 as the kernel sees fit, 1 always, 2 never.
        huge_pages: ``always``, ``madvise`` or ``never``.
        pressure: the kernel tells memory pressure.
        cpus_online: processors that are on.
        governor: how the first processor chooses its clock.
        pythons: versions in ``/usr/bin``, or of this interpreter, such as ``3.10``.
        onnxruntime: version, installed for the system or importable here.
        disk_free_bytes: where this process works; None for another root.
    """

    power_mode: PowerMode | None
    desktop: bool | None
    overcommit: int | None
    huge_pages: str | None
    pressure: bool
    cpus_online: int | None
    governor: str | None
    pythons: tuple[str, ...]
    onnxruntime: str | None
    disk_free_bytes: int | None


def read_health(facts: BoardFacts, root: Path = _HOST) -> Health:
    """Read the rest of the machine that ``facts`` are of.

    Args:
        facts: of the same root.
        root: ``/``, or a copy of another machine's files.
    """
    here = root == _HOST
    overcommit = read_text(root / "proc/sys/vm/overcommit_memory").strip()
    chosen = re.search(r"\[(\w+)\]", read_text(root / _THP))
    return Health(
        power_mode=_power_mode(root),
        desktop=_desktop(root),
        overcommit=int(overcommit) if overcommit in ("0", "1", "2") else None,
        huge_pages=chosen[1] if chosen else None,
        pressure="full avg10=" in read_text(root / "proc/pressure/memory"),
        cpus_online=_count(read_text(root / "sys/devices/system/cpu/online")),
        governor=_word(read_text(root / _GOVERNOR)),
        pythons=(_minor(facts.python),) if facts.python else _pythons(root),
        onnxruntime=facts.onnxruntime if here else _onnxruntime(root),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free if here else None,
    )


_THP = "sys/kernel/mm/transparent_hugepage/enabled"
_GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


def _power_mode(root: Path) -> PowerMode | None:
    conf = read_text(root / "etc/nvpmodel.conf")
    names = {int(number): name for number, name in _MODE_NAME.findall(conf)}
    found = _MODE.search(read_text(root / "var/lib/nvpmodel/status")) or _DEFAULT_MODE.search(conf)
    if found is None:
        return None
    number = int(found[1])
    return PowerMode(number, names.get(number), tuple(names[n] for n in sorted(names)))


def _desktop(root: Path) -> bool | None:
    target = root / "etc/systemd/system/default.target"
    try:
        return "graphical" in target.readlink().name
    except OSError:
        return None


def _count(text: str) -> int | None:
    """``0-3,5`` -> 5; None for anything else."""
    parts = text.strip().split(",")
    if not all(re.fullmatch(r"\d{1,4}(-\d{1,4})?", part) for part in parts):
        return None
    ranges = [part.partition("-") for part in parts]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def _word(text: str) -> str | None:
    word = text.strip()
    return word if re.fullmatch(r"[a-z_]{1,30}", word) else None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _pythons(root: Path) -> tuple[str, ...]:
    folder = root / "usr/bin"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = {match[1] for match in map(_PYTHON.fullmatch, names) if match}
    return tuple(sorted(found, key=lambda v: int(v.partition(".")[2])))


def _onnxruntime(root: Path) -> str | None:
    for pattern in _PACKAGE_FOLDERS:
        for path in sorted(root.glob(f"{pattern}/onnxruntime*.dist-info")):
            match = _PACKAGE.fullmatch(path.name)
            if match:
                return match[1].rstrip(".")
    return None
