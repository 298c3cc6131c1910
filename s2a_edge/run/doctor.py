"""What will go wrong on a machine, and how to mend it.

Every check is a function of the facts; one that cannot be answered from them says nothing. Figures
of boards are their profiles'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from s2a_edge.run.health import Health
from s2a_edge.run.installed_runtime import MIN_ONNXRUNTIME, runtime_version
from s2a_edge.run.probe import BoardFacts
from s2a_edge.run.process_arena import ARENA_REPLACEABLE
from s2a_edge.spec.profile_facts import DeviceProfile
from s2a_edge.spec.units import GIB, MIB, format_bytes

Severity = Literal["fails", "risk", "note"]

MIN_PYTHON = (3, 10)
LEAST_AVAILABLE_BYTES = 160 * MIB
"""Python and onnxruntime with their sessions, before any weight is mapped: 105 MiB of a ViT-S on
x86-64 (`check`); the smallest backbones need some tens of MiB more."""
LEAST_DISK_BYTES, LITTLE_DISK_BYTES = 256 * MIB, 2 * GIB
HOT_C, TRIP_C = 85.0, 95.0
"""Orin's junction sensors trip at 95 degrees; clocks are lowered before."""


@dataclass(frozen=True)
class Finding:
    """Something that will, or may, go wrong.

    Attributes:
        topic: what it is about.
        severity: ``fails``: training cannot run; ``risk``: it may end, or be killed; ``note``: it
            is slower than need be, or something does not work as one might expect.
        found: what is the case.
        consequence: what comes of it.
        mend: what to do; a command where there is one.
    """

    topic: str
    severity: Severity
    found: str
    consequence: str
    mend: str


@dataclass(frozen=True)
class Patient:
    """All that is known of a machine; ``profile`` is None where none matches."""

    facts: BoardFacts
    health: Health
    profile: DeviceProfile | None

    @property
    def jetson(self) -> bool:
        """It is a Jetson, known or not."""
        if self.profile is not None:
            return self.profile.kind == "jetson"
        return bool(self.facts.tnspec) or any("tegra" in entry for entry in self.facts.compatible)


def diagnose(patient: Patient) -> tuple[Finding, ...]:
    """Everything that was found, the worst first."""
    order = ("fails", "risk", "note")
    found = [finding for check in _CHECKS for finding in check(patient)]
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _board(p: Patient) -> Iterator[Finding]:
    if p.profile is None:
        yield Finding(
            "board", "risk", p.facts.reason, "no budget can be derived from a profile",
            "give --budget SIZE, or a profile of your own: --device FILE.toml",
        )  # fmt: skip
        return
    if not p.profile.can_train:
        yield Finding(
            "board", "fails", p.profile.title, p.profile.can_train_reason,
            "plan and pack for it on a host; train on a board whose profile says that it trains",
        )  # fmt: skip
    if "says otherwise" in p.facts.reason or "unusual" in p.facts.reason:
        yield Finding(
            "board", "note", p.facts.reason, "the budget is that of another board if this is wrong",
            "compare with the label of the module; --device NAME overrides it",
        )  # fmt: skip


def _release(p: Patient) -> Iterator[Finding]:
    if not p.jetson:
        return
    release = p.facts.l4t_release
    if release is None:
        yield Finding(
            "release", "risk", "no /etc/nv_tegra_release",
            "inside a container, GPU libraries of the host may be missing",
            "use an L4T base image of the host's release, with --runtime nvidia",
        )  # fmt: skip
    elif int(release.split(".")[0]) < 36 and p.profile is not None and p.profile.can_train:
        newest = p.profile.software.jetpack
        yield Finding(
            "release", "fails", f"L4T {release}",
            "its Python and ONNX Runtime are older than the runtime needs",
            f"flash JetPack {newest.value if newest else '6 or newer'}",
        )  # fmt: skip


def _python(p: Patient) -> Iterator[Finding]:
    pythons = p.health.pythons
    if pythons and all(tuple(map(int, v.split("."))) < MIN_PYTHON for v in pythons):
        yield Finding(
            "Python", "fails", ", ".join(pythons), "s2a-edge needs 3.10 or newer",
            "flash a newer JetPack, or install a newer Python beside it",
        )  # fmt: skip


def _onnxruntime(p: Patient) -> Iterator[Finding]:
    version = p.health.onnxruntime
    if version is None or not re.match(r"\d+\.\d+", version):
        yield Finding(
            "ONNX Runtime", "fails", "not installed", "nothing can run",
            "install the build of this board (deploy/README.md), then s2a-edge",
        )  # fmt: skip
        return
    if runtime_version(version) < runtime_version(MIN_ONNXRUNTIME):
        yield Finding(
            "ONNX Runtime", "fails", version, f"{MIN_ONNXRUNTIME} or newer is needed",
            "install a newer build (deploy/README.md)",
        )  # fmt: skip
    elif runtime_version(version) < runtime_version(ARENA_REPLACEABLE):
        yield Finding(
            "ONNX Runtime", "note", version,
            "a process keeps its first arena: stepping down to a smaller micro-batch takes a new "
            "process, which `train` starts by itself",
            f"{ARENA_REPLACEABLE} or newer does it in place",
        )  # fmt: skip
    gpu = p.profile is not None and p.profile.gpu.sm is not None
    if gpu and p.facts.providers and "CUDAExecutionProvider" not in p.facts.providers:
        yield Finding(
            "ONNX Runtime", "note", "no CUDA provider", "training runs on the CPU",
            "install the vendor's or a community build: PyPI's has no code for Jetson GPUs",
        )  # fmt: skip


def _memory(p: Patient) -> Iterator[Finding]:
    available, total = p.facts.mem_available_bytes, p.facts.mem_total_bytes
    if available is None or total is None:
        yield Finding(
            "memory", "risk", "/proc/meminfo does not tell MemAvailable",
            "neither a budget nor the watchdog can be had", "use Linux 3.14 or newer",
        )  # fmt: skip
        return
    left = f"{format_bytes(available)} of {format_bytes(total)} available"
    if available < LEAST_AVAILABLE_BYTES:
        yield Finding(
            "memory", "fails", left, "Python and the runtime alone hardly fit",
            "end other programs; `ps axo rss,comm --sort=-rss | head` shows the largest",
        )  # fmt: skip
    elif available < total // 4:
        yield Finding(
            "memory", "risk", left, "small micro-batches, or the run steps down or ends",
            "end other programs before training",
        )  # fmt: skip


def _cgroup(p: Patient) -> Iterator[Finding]:
    group, total = p.facts.cgroup, p.facts.mem_total_bytes
    if group is None or (total is not None and group.limit_bytes >= total):
        return
    tight = group.available_bytes + group.active_cache_bytes < LEAST_AVAILABLE_BYTES
    yield Finding(
        "control group", "risk" if tight else "note",
        f"{group.limit_name} of {group.path} is {format_bytes(group.limit_bytes)}, "
        f"{format_bytes(group.available_bytes)} left",
        "what does not fit is killed; GPU memory may not be counted",
        "--this-device respects it; raise MemoryMax= of the service or --memory of the container",
    )  # fmt: skip


def _swap(p: Patient) -> Iterator[Finding]:
    zram = [swap for swap in p.facts.swaps if swap.zram]
    if zram:
        yield Finding(
            "zram", "note", f"{format_bytes(sum(swap.size_bytes for swap in zram))} of zram",
            "it takes RAM to give RAM, and relieves CPU pages only; GPU memory cannot be swapped",
            "sudo systemctl disable --now nvzramconfig" if p.jetson else "turn it off to measure",
        )  # fmt: skip
    for swap in p.facts.swaps:
        if swap.size_bytes and swap.used_bytes > swap.size_bytes // 4:
            yield Finding(
                "swap", "risk",
                f"{format_bytes(swap.used_bytes)} in use of {swap.path}",
                "memory is short already: steps take many times as long",
                "end other programs, then `sudo swapoff -a && sudo swapon -a`",
            )  # fmt: skip


def _thermal(p: Patient) -> Iterator[Finding]:
    hottest = max(p.facts.thermal_zones, key=lambda zone: zone.temperature_c, default=None)
    if hottest is None or hottest.temperature_c < HOT_C:
        return
    trips = hottest.temperature_c >= TRIP_C
    yield Finding(
        "heat", "risk" if trips else "note", f"{hottest.name} at {hottest.temperature_c:.0f} °C",
        "the board shuts down or throttles" if trips else "clocks go down: steps take longer",
        "see to the fan (`sudo nvfancontrol -q`) or take a lower power mode" if p.jetson
        else "see to the cooling",
    )  # fmt: skip


def _power(p: Patient) -> Iterator[Finding]:
    mode = p.health.power_mode
    # MAXN has been number 0 except on Super boards, where it is named so.
    best = mode is not None and (
        "MAXN" in (mode.name or "") or (mode.number == 0 and "MAXN_SUPER" not in mode.names)
    )
    if mode is not None and not best:
        name = mode.name or f"mode {mode.number}"
        fastest = next((n for n in mode.names if "MAXN" in n), "the largest mode")
        yield Finding(
            "power mode", "note", name, "fewer processors or lower clocks: steps take longer",
            f"sudo nvpmodel -p --verbose lists the modes; {fastest} is the fastest, if the supply "
            "and the cooling are made for it",
        )  # fmt: skip
    cores = p.profile.cpu.cores if p.profile is not None else None
    online = p.health.cpus_online
    if cores is not None and online is not None and online < cores.value:
        yield Finding(
            "processors", "note", f"{online} of {cores.value} on", "steps take longer",
            "a larger power mode turns the others on",
        )  # fmt: skip
    if p.health.governor == "powersave":
        yield Finding(
            "processors", "note", "governor powersave", "clocks stay low: steps take longer",
            "sudo jetson_clocks" if p.jetson else "sudo cpupower frequency-set -g schedutil",
        )  # fmt: skip


def _desktop(p: Patient) -> Iterator[Finding]:
    if p.jetson and p.health.desktop:
        extra = p.profile.memory.desktop_extra_bytes if p.profile is not None else None
        size = format_bytes(extra.value) if extra is not None else "hundreds of MiB"
        yield Finding(
            "desktop", "risk", "a desktop starts with the system",
            f"it takes about {size} of the memory that training could use",
            "sudo systemctl set-default multi-user.target, then reboot",
        )  # fmt: skip


def _kernel(p: Patient) -> Iterator[Finding]:
    if p.health.overcommit == 2:
        yield Finding(
            "overcommit", "risk", "vm.overcommit_memory is 2",
            "the arena is reserved as a whole and may be refused",
            "sudo sysctl vm.overcommit_memory=0",
        )  # fmt: skip
    if p.health.huge_pages == "never":
        yield Finding(
            "huge pages", "note", "transparent huge pages are off",
            "steps take some percent longer",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )  # fmt: skip
    if not p.health.pressure:
        yield Finding(
            "pressure", "note", "the kernel does not tell memory pressure",
            "the watchdog sees MemAvailable and control groups only",
            "boot with psi=1 where the kernel has it",
        )  # fmt: skip


def _disk(p: Patient) -> Iterator[Finding]:
    free_bytes = p.health.disk_free_bytes
    if free_bytes is not None and free_bytes < LITTLE_DISK_BYTES:
        severity: Severity = "fails" if free_bytes < LEAST_DISK_BYTES else "risk"
        yield Finding(
            "disk", severity, f"{format_bytes(free_bytes)} free here",
            "no room for a bundle, its unpacked files and checkpoints",
            "free some, or work on another disk",
        )  # fmt: skip


_CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    _board,
    _release,
    _python,
    _onnxruntime,
    _memory,
    _cgroup,
    _swap,
    _thermal,
    _power,
    _desktop,
    _kernel,
    _disk,
)
