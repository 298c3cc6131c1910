"""Boards recognized from fixture trees: several modules, contradictions, junk."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2a_edge.run.board_match import match_board
from s2a_edge.run.probe import BoardFacts, detect
from s2a_edge.spec.device_profile import list_profiles
from s2a_edge.spec.profile_facts import DeviceProfile
from s2a_edge.spec.units import GIB, MIB

PROFILES = list_profiles()


def board(
    root: Path,
    *,
    tnspec: str | None = None,
    compatible: str | None = None,
    model: str | None = None,
    mem_total_mib: int | None = None,
    files: dict[str, str] | None = None,
) -> BoardFacts:
    tree = dict(files or {})
    if tnspec is not None:
        tree["etc/nv_boot_control.conf"] = f"TNSPEC {tnspec}\nTEGRA_CHIPID 0x23\n"
    if compatible is not None:
        tree["proc/device-tree/compatible"] = compatible
    if model is not None:
        tree["proc/device-tree/model"] = model + "\0"
    if mem_total_mib is not None:
        tree["proc/meminfo"] = (
            f"MemTotal: {mem_total_mib * 1024} kB\nMemAvailable: {mem_total_mib * 512} kB\n"
        )
    for name, content in tree.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return detect(root)


@pytest.mark.parametrize(
    ("tnspec", "profile"),
    [
        ("3767-300-0005-N.2-1-1-jetson-orin-nano-devkit-", "orin-nano-8gb"),
        ("3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-", "orin-nano-8gb"),
        ("3767-300-0003-N.2-1-1-jetson-orin-nano-devkit-", "orin-nano-8gb"),
        ("3767-300-0004-N.2-1-1-jetson-orin-nano-devkit-", "orin-nano-4gb"),
        ("3767-303-0000-D.1-1-1-jetson-orin-nano-devkit-super-", "orin-nx-16gb"),
        ("3767-300-0001-D.1-1-1-jetson-orin-nano-devkit-", "orin-nx-8gb"),
        ("3701-500-0004-A.0-1-0-jetson-agx-orin-devkit-", "agx-orin-32gb"),
        ("3701-500-0005-A.0-1-0-jetson-agx-orin-devkit-", "agx-orin-64gb"),
        ("3668-100-0000-F.0-1-2-jetson-xavier-nx-devkit-mmcblk0p1", "xavier-nx-8gb"),
        ("3668-100-0003-F.0-1-2-jetson-xavier-nx-devkit-emmc-", "xavier-nx-16gb"),
        ("2888-400-0004-M.0-1-2-jetson-xavier-rootfs", "agx-xavier-32gb"),
        ("3448-0002-300-A.0-1-0-jetson-nano-", "nano-4gb"),
        ("3834-400-0008-A.0-1-0-jetson-agx-thor-devkit-", "thor-t5000"),
    ],
)
def test_the_flashed_specification_decides(tmp_path: Path, tnspec: str, profile: str) -> None:
    facts = board(tmp_path, tnspec=tnspec)
    assert facts.profile == profile
    assert facts.tnspec == tnspec
    assert "TNSPEC" in facts.reason


@pytest.mark.parametrize(
    ("entries", "mem_total_mib", "profile"),
    [
        ("p3768-0000+p3767-0005 p3767-0005 tegra234", 7620, "orin-nano-8gb"),
        ("p3768-0000+p3767-0005-super p3767-0005 tegra234", 7620, "orin-nano-8gb"),
        ("p3768-0000+p3767-0000 p3767-0000 tegra234", 15656, "orin-nx-16gb"),
        ("p3449-0000-b00+p3448-0000-b00 jetson-nano tegra210", 3956, "nano-4gb"),
        ("p3542-0000+p3448-0003 jetson-nano-2gb tegra210", 1979, "nano-2gb"),
        ("p2597-0000+p3310-1000 jetson-tx2 tegra186", 7846, "tx2-8gb"),
        ("p3636-0001+p3489-0888 tegra186", 3832, "tx2-4gb"),
        ("p3737-0000+p3701-0000 p3701-0000 tegra234", 30536, "agx-orin-32gb"),
        ("p3737-0000+p3701-0000 p3701-0000 tegra234", 62841, "agx-orin-64gb"),
        ("p4071-0000+p3834-0008 p3834-0008 tegra264", 125772, "thor-t5000"),
    ],
)
def test_the_device_tree_decides_next(
    tmp_path: Path, entries: str, mem_total_mib: int, profile: str
) -> None:
    compatible = [f"nvidia,{entry}" for entry in entries.split()]
    facts = board(tmp_path, compatible="\0".join([*compatible, ""]), mem_total_mib=mem_total_mib)
    assert facts.profile == profile
    assert facts.compatible == tuple(compatible)
    assert facts.mem_total_bytes == mem_total_mib * MIB


def test_an_empty_sku_leaves_it_to_the_device_tree(tmp_path: Path) -> None:
    facts = board(
        tmp_path,
        tnspec="3448-300---1-0-jetson-nano-qspi-sd-mmcblk0p1",
        compatible="nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,tegra210\0",
    )
    assert facts.profile == "nano-4gb"
    assert facts.reason.startswith("compatible")


def test_a_wrong_model_string_is_overruled_and_named(tmp_path: Path) -> None:
    facts = board(
        tmp_path,
        compatible="nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
        model="NVIDIA Jetson Orin Nano Developer Kit",
        mem_total_mib=15656,
    )
    assert facts.profile == "orin-nx-16gb"
    assert "Orin Nano Developer Kit' says otherwise" in facts.reason


def test_the_model_string_serves_where_nothing_else_does(tmp_path: Path) -> None:
    facts = board(tmp_path, model="NVIDIA Jetson Orin NX Developer Kit", mem_total_mib=15656)
    assert facts.profile == "orin-nx-16gb"
    assert "MemTotal" in facts.reason


def test_the_more_specific_model_name_wins(tmp_path: Path) -> None:
    assert board(tmp_path, model="NVIDIA Jetson Nano 2GB Developer Kit").profile == "nano-2gb"


def test_the_chip_and_memory_are_the_last_resort(tmp_path: Path) -> None:
    facts = board(tmp_path, compatible="vendor,carrier\0nvidia,tegra264\0", mem_total_mib=125772)
    assert facts.profile == "thor-t5000"


def test_an_ambiguous_board_is_not_guessed(tmp_path: Path) -> None:
    facts = board(tmp_path, compatible="vendor,carrier\0nvidia,tegra234\0", mem_total_mib=7620)
    assert facts.profile is None
    assert "orin-nano-8gb" in facts.reason
    assert "orin-nx-8gb" in facts.reason


def test_unusual_memory_is_mentioned(tmp_path: Path) -> None:
    facts = board(tmp_path, tnspec="3767-300-0005-N.2-1-1-x-", mem_total_mib=2000)
    assert facts.profile == "orin-nano-8gb"
    assert "unusual" in facts.reason


def test_an_unknown_jetson_has_no_profile(tmp_path: Path) -> None:
    facts = board(tmp_path, compatible="nvidia,p9999-0000\0nvidia,tegra999\0", mem_total_mib=4000)
    assert facts.profile is None
    assert "Jetson" in facts.reason


def test_another_machine_is_the_reference(tmp_path: Path) -> None:
    assert detect(tmp_path).profile == "cpu-reference"
    facts = board(tmp_path, compatible="raspberrypi,5-model-b\0brcm,bcm2712\0", mem_total_mib=8000)
    assert facts.profile == "cpu-reference"


def test_without_profiles_nothing_matches() -> None:
    match = match_board([], tnspec=None, compatible=(), model=None, mem_total_bytes=None)
    assert match.profile is None


def test_an_empty_tree_leaves_everything_empty(tmp_path: Path) -> None:
    facts = detect(tmp_path)
    assert (facts.tnspec, facts.compatible, facts.model, facts.l4t_release) == (
        None,
        (),
        None,
        None,
    )
    assert (facts.mem_total_bytes, facts.mem_available_bytes, facts.cgroup) == (None, None, None)
    assert (facts.zram_bytes, facts.swaps, facts.thermal_zones) == (0, (), ())
    assert (facts.cpu_count, facts.python, facts.onnxruntime, facts.providers) == (None,) * 3 + (
        (),
    )


def test_release_swap_and_temperatures_are_read(tmp_path: Path) -> None:
    facts = board(
        tmp_path,
        files={
            "etc/nv_tegra_release": (
                "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
            ),
            "sys/block/zram0/disksize": f"{600 * MIB}\n",
            "sys/block/zram1/disksize": f"{600 * MIB}\n",
            "sys/block/nvme0n1/disksize": "5\n",
            "proc/swaps": (
                "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
                "/dev/zram0                              partition\t614400\t\t1024\t\t5\n"
                "/swapfile                               file\t\t8388604\t\t0\t\t-2\n"
                "broken line\n"
            ),
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48500\n",
            "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
            "sys/class/thermal/thermal_zone8/temp": "51250\n",
            "sys/class/thermal/thermal_zone9/type": "off\n",
            "sys/class/thermal/thermal_zone9/temp": "-256000\n",
            "sys/class/thermal/cooling_device0/type": "fan\n",
        },
    )
    assert facts.l4t_release == "36.4.3"
    assert facts.zram_bytes == 1200 * MIB
    assert [(s.path, s.size_bytes, s.used_bytes, s.zram) for s in facts.swaps] == [
        ("/dev/zram0", 600 * MIB, MIB, True),
        ("/swapfile", 8388604 * 1024, 0, False),
    ]
    zones = {zone.name: zone.temperature_c for zone in facts.thermal_zones}
    assert zones == {"cpu-thermal": 48.5, "tj-thermal": 51.25}


def test_a_container_limit_is_among_the_facts(tmp_path: Path) -> None:
    facts = board(
        tmp_path,
        mem_total_mib=7620,
        files={
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": str(GIB),
            "sys/fs/cgroup/memory.current": "4096",
        },
    )
    assert facts.cgroup is not None
    assert facts.cgroup.limit_bytes == GIB
    assert json.loads(json.dumps(facts.as_dict()))["cgroup"]["limit_bytes"] == GIB


JUNK_FILES = [
    "etc/nv_boot_control.conf", "etc/nv_tegra_release", "proc/device-tree/compatible",
    "proc/device-tree/model", "proc/meminfo", "proc/swaps", "proc/self/cgroup",
    "sys/block/zram0/disksize", "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/thermal_zone0/type", "sys/fs/cgroup/memory.max",
]  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), min_size=len(JUNK_FILES), max_size=len(JUNK_FILES)))
def test_junk_never_raises(tmp_path: Path, contents: list[bytes]) -> None:
    for name, content in zip(JUNK_FILES, contents, strict=True):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    json.dumps(detect(tmp_path).as_dict())


def test_directories_in_place_of_files_never_raise(tmp_path: Path) -> None:
    for name in JUNK_FILES:
        (tmp_path / name).mkdir(parents=True)
    assert detect(tmp_path).profile == "cpu-reference"


@given(
    tnspec=st.none() | st.text(max_size=40),
    compatible=st.lists(st.text(max_size=30), max_size=4),
    model=st.none() | st.text(max_size=40),
    mem_total_bytes=st.none() | st.integers(0, 2**40),
)
def test_matching_always_gives_a_reason(
    tnspec: str | None, compatible: list[str], model: str | None, mem_total_bytes: int | None
) -> None:
    match = match_board(
        PROFILES,
        tnspec=tnspec,
        compatible=compatible,
        model=model,
        mem_total_bytes=mem_total_bytes,
    )
    assert match.reason
    assert match.profile is None or match.profile in {profile.name for profile in PROFILES}


@pytest.mark.parametrize(
    "profile", [p for p in PROFILES if p.detection.parts], ids=lambda p: p.name
)
def test_every_listed_part_leads_to_its_profile(profile: DeviceProfile) -> None:
    assert profile.detection.parts is not None
    assert profile.memory.capacity_bytes is not None
    for part in profile.detection.parts.value:
        match = match_board(
            PROFILES,
            tnspec=None,
            compatible=(f"nvidia,p0001-0000+{part}",),
            model=None,
            mem_total_bytes=int(profile.memory.capacity_bytes.value * 0.95),
        )
        assert match.profile == profile.name


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads this machine's /proc")
def test_this_machine_is_described() -> None:
    facts = detect()
    assert facts.python == platform.python_version()
    assert facts.cpu_count is not None
    assert 1 <= facts.cpu_count <= (os.cpu_count() or 1)
    assert facts.mem_total_bytes is not None
    assert facts.onnxruntime is not None
    assert "CPUExecutionProvider" in facts.providers
