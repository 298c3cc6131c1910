"""A memory control group of a test's own, below the one that the test runs in.

``S2A_EDGE_TEST_CGROUP`` may name the group to make it in. Else v1: the process's own group; v2: the
nearest group, from its own upwards, that hands the memory controller on and may be written, since
there a group with processes in it cannot hand one on to children.

Source: the kernel's ``Documentation/admin-guide/cgroup-v1/memory.rst`` and ``cgroup-v2.rst``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))"


@dataclass(frozen=True)
class ControlGroup:
    """A group that bounds the memory of the processes in it.

    Attributes:
        path: its directory.
        version: 1 or 2.
    """

    path: Path
    version: int

    @property
    def processes(self) -> Path:
        """The file that takes the id of a process that enters."""
        return self.path / "cgroup.procs"

    def limit(self, size_bytes: int) -> None:
        """Bounds memory; also swap, where the kernel counts it, so that nothing evades the bound.

        Raises:
            OSError: v1, and the group holds more that cannot be dropped.
        """
        swap = self.path / ("memory.memsw.limit_in_bytes" if self.version == 1 else
                            "memory.swap.max")
        memory = self.path / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")
        memory.write_text(str(size_bytes))
        if swap.exists():  # v1 counts memory and swap together
            swap.write_text(str(size_bytes) if self.version == 1 else "0")

    @property
    def held_bytes(self) -> int:
        """What it holds now, without files that the kernel can drop."""
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        used_bytes = int((self.path / name).read_text())
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return used_bytes - int(stat["inactive_file"]) - int(stat["active_file"])

    @property
    def kills(self) -> int:
        """Processes that the kernel ended because of the limit."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.path / name).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        raise AssertionError(f"{self.path / name} does not count kills")


@contextmanager
def child_group(name: str) -> Iterator[ControlGroup | str]:
    """A new group, gone afterwards, or the reason why there is none."""
    parent = _parent()
    if isinstance(parent, str):
        yield parent
        return
    made = ControlGroup(parent.path / f"{name}-{os.getpid()}", parent.version)
    try:
        made.path.mkdir()
    except OSError as error:
        yield f"no control group below {parent.path}: {error.strerror}"
        return
    try:
        entered = subprocess.run([sys.executable, "-c", _ENTER, str(made.processes)],
                                 capture_output=True, check=False)
        if entered.returncode:
            yield f"{made.path} may not be entered"
        else:
            yield made
    finally:
        _remove(made.path)


def _parent() -> ControlGroup | str:
    named = os.environ.get("S2A_EDGE_TEST_CGROUP")
    if named:
        version = 1 if (Path(named) / "memory.limit_in_bytes").exists() else 2
        return ControlGroup(Path(named), version)
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _own_v1(_MOUNT / "memory" / path.lstrip("/"))
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return _handed_on_v2(_MOUNT / line[3:].lstrip("/"))
    return "no control group with a memory controller"


def _own_v1(own: Path) -> ControlGroup | str:
    try:
        mine = str(os.getpid()) in (own / "cgroup.procs").read_text().split()
        # Without hierarchy a child would evade the limits of its parents.
        nested = (own / "memory.use_hierarchy").read_text().strip() == "1"
    except OSError as error:
        return f"{own}: {error.strerror}"
    if not (mine and nested and os.access(own, os.W_OK)):
        return f"{own} may not be written, or is not this process's own"
    return ControlGroup(own, 1)


def _handed_on_v2(own: Path) -> ControlGroup | str:
    for group in (own, *own.parents):
        if not group.is_relative_to(_MOUNT):
            break
        handed = group / "cgroup.subtree_control"
        if handed.is_file() and "memory" in handed.read_text().split():
            if os.access(group, os.W_OK):
                return ControlGroup(group, 2)
            return f"{group} may not be written"
    return f"no group from {own} upwards hands the memory controller on"


def _remove(group: Path) -> None:
    """A group whose last process has just ended may be busy for a moment."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)
    group.rmdir()
