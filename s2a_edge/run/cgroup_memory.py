"""Memory limits of the control groups that a process is in, cgroup v1 and v2.

A limit may stand at any level above the process, and inside a container the paths of
``/proc/self/cgroup`` may not exist below the mount; so every level from the process's own group up
to the mount point is looked at, and the level that leaves the least counts.

Source: the kernel's ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# cgroup v1 says "no limit" as the largest multiple of the page size that int64 holds.
_UNLIMITED_BYTES = 1 << 60
_MAX_FILE_BYTES = 1 << 16


@dataclass(frozen=True)
class CgroupMemory:
    """The tightest memory limit above a process.

    Attributes:
        version: 1 or 2.
        path: the group's directory.
        limit_bytes: its limit.
        usage_bytes: what its processes use, less cached files that the kernel would drop first.
        limit_name: the file that holds the limit; above ``memory.high`` processes are slowed down,
            not ended.
        active_cache_bytes: cached files among ``usage_bytes``, which can be dropped too.
    """

    version: int
    path: str
    limit_bytes: int
    usage_bytes: int
    limit_name: str = "memory.max"
    active_cache_bytes: int = 0

    @property
    def available_bytes(self) -> int:
        """What can still be allocated below the limit; never negative."""
        return max(0, self.limit_bytes - self.usage_bytes)


def read_text(path: Path) -> str:
    """The start of a small text file, NULs and junk included; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""


def read_cgroup_memory(root: Path = Path("/")) -> CgroupMemory | None:
    """The tightest limit above this process, or None if there is none.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    limits: list[CgroupMemory] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            limits += _limits(2, _mount_v2(root), path)
        elif "memory" in controllers.split(","):
            limits += _limits(1, root / "sys/fs/cgroup/memory", path)
    return min(limits, key=lambda limit: limit.available_bytes, default=None)


def _mount_v2(root: Path) -> Path:
    """Where v2 is mounted: alone, or beside v1 controllers (``unified``)."""
    unified = root / "sys/fs/cgroup/unified"
    return unified if unified.is_dir() else root / "sys/fs/cgroup"


def _limits(version: int, mount: Path, path: str) -> Iterator[CgroupMemory]:
    limit_names, usage_name, cache_key = {
        1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_{}active_file"),
        2: (("memory.max", "memory.high"), "memory.current", "{}active_file"),
    }[version]
    for group in _levels(mount, path):
        limits = {name: _number(read_text(group / name)) for name in limit_names}
        known = {name: size for name, size in limits.items() if size is not None}
        name = min(known, key=lambda name: known[name], default=None)
        if name is None or known[name] >= _UNLIMITED_BYTES:
            continue
        usage_bytes = _number(read_text(group / usage_name)) or 0
        stat = read_text(group / "memory.stat")
        used_bytes = max(0, usage_bytes - _stat(stat, cache_key.format("in")))
        active_bytes = min(used_bytes, _stat(stat, cache_key.format("")))
        yield CgroupMemory(version, str(group), known[name], used_bytes, name, active_bytes)


def _levels(mount: Path, path: str) -> Iterator[Path]:
    """The group of ``path`` below ``mount``, then its parents, then ``mount`` itself."""
    # A process moved out of its cgroup namespace has ".." in its path: not ours to follow.
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _number(text: str) -> int | None:
    """A file's only number; None for ``max``, junk and nothing."""
    word = text.strip()
    return int(word) if word.isascii() and word.isdigit() and len(word) < 20 else None


def _stat(text: str, key: str) -> int:
    """One value of ``memory.stat``; 0 where it is missing."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return _number(value) or 0
    return 0
