"""Trees of ``/proc``, ``/sys``, ``/etc`` and ``/usr`` as a board of a profile has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from s2a_edge.spec.profile_facts import DeviceProfile
from s2a_edge.spec.units import GIB, KIB, MIB

# Newest release of the software that a profile names, and the Python and ONNX Runtime that come
# with it.
SOFTWARE = {
    "tegra210": ("32", "7.6", "3.6", "1.11.0"),
    "tegra186": ("32", "7.6", "3.6", "1.11.0"),
    "tegra194": ("35", "6.4", "3.8", "1.16.3"),
    "tegra234": ("36", "4.3", "3.10", "1.23.0"),
    "tegra264": ("38", "2.0", "3.12", "1.24.1"),
}


@dataclass
class Tree:
    """Files by path, and links by path; written below a root."""

    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        for name, text in self.files.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for name, target in self.links.items():
            link = root / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        return root


def mem_total_bytes(profile: DeviceProfile) -> int:
    """Typical, or else what modules leave of their capacity."""
    memory = profile.memory
    if memory.mem_total_bytes is not None:
        return memory.mem_total_bytes.value
    capacity = memory.capacity_bytes.value if memory.capacity_bytes else 8 * GIB
    return int(0.95 * capacity)


def healthy_tree(profile: DeviceProfile) -> Tree:
    """A board of this profile: headless, idle, cool, in its fastest mode."""
    detection = profile.detection
    part = detection.parts.value[-1] if detection.parts else "p0000"
    module, _, sku = part.removeprefix("p").partition("-")
    soc = detection.soc.value if detection.soc else "tegra234"
    major, revision, python, onnxruntime = SOFTWARE[soc]
    total_kb = mem_total_bytes(profile) // KIB
    modes = profile.power.modes.value if profile.power.modes else ("MAXN",)
    fastest = next((i for i, name in enumerate(modes) if "MAXN" in name), 0)
    cores = profile.cpu.cores.value if profile.cpu.cores else 4
    conf = "".join(
        f"< POWER_MODEL ID={i} NAME={name} >\n" for i, name in enumerate(modes)
    ) + f"< PM_CONFIG DEFAULT={fastest} >\n"
    packages = f"usr/local/lib/python{python}/dist-packages"
    return Tree(
        {
            "etc/nv_boot_control.conf": f"TNSPEC {module}-300-{sku}-A.0-1-0-jetson-board-\n",
            "etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 1, "
            "BOARD: generic, EABI: aarch64\n",
            "etc/nvpmodel.conf": conf,
            "var/lib/nvpmodel/status": f"pmode:{fastest:04}\n",
            "proc/device-tree/compatible": f"nvidia,p0001-0000+{part}\0nvidia,{soc}\0",
            "proc/device-tree/model": f"NVIDIA {profile.title}\0",
            "proc/meminfo": f"MemTotal: {total_kb} kB\nMemAvailable: {total_kb * 9 // 10} kB\n",
            "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            "proc/swaps": "Filename Type Size Used Priority\n",
            "proc/sys/vm/overcommit_memory": "0\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "sys/devices/system/cpu/online": f"0-{cores - 1}\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "sys/class/thermal/thermal_zone0/type": "tj-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48500\n",
            f"usr/bin/python{python}": "",
            f"{packages}/onnxruntime_gpu-{onnxruntime}.dist-info/METADATA": "",
        },
        {"etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target"},
    )


def zram(size_bytes: int = 4 * GIB, used_bytes: int = 0) -> dict[str, str]:
    """The files of one zram device that is swapped to."""
    swaps = "Filename Type Size Used Priority\n"
    swaps += f"/dev/zram0 partition {size_bytes // KIB} {used_bytes // KIB} 5\n"
    return {"proc/swaps": swaps, "sys/block/zram0/disksize": f"{size_bytes}\n"}


def group(limit_bytes: int = 200 * MIB, usage_bytes: int = 20 * MIB) -> dict[str, str]:
    """The files of a limited control group v2."""
    return {
        "proc/self/cgroup": "0::/run\n",
        "sys/fs/cgroup/run/memory.max": f"{limit_bytes}\n",
        "sys/fs/cgroup/run/memory.current": f"{usage_bytes}\n",
        "sys/fs/cgroup/run/memory.stat": "inactive_file 0\nactive_file 0\n",
    }
