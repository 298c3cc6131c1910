"""Short memory read from fixture trees of /proc and /sys/fs/cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2a_edge.run.cgroup_memory import read_cgroup_memory
from s2a_edge.run.headroom import SETTLING_S, HeadroomWatch, default_headroom_bytes
from s2a_edge.spec.units import GIB, KIB, MIB


def write(root: Path, **files: str | int) -> Path:
    """Files by path, ``/`` written as ``__``; of a group v2 ``/run`` unless told otherwise."""
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def machine(root: Path, available_bytes: int, total_bytes: int = 8 * GIB) -> Path:
    return write(
        root,
        proc__meminfo=f"MemTotal: {total_bytes // KIB} kB\nMemAvailable: "
        f"{available_bytes // KIB} kB",
    )


def group_v2(root: Path, **files: str | int) -> Path:
    write(root, proc__self__cgroup="0::/run")
    for name, text in files.items():
        write(root, **{f"sys__fs__cgroup__run__memory.{name}": text})
    return root


def group_v1(root: Path, **files: str | int) -> Path:
    write(root, proc__self__cgroup="7:cpu:/\n4:memory:/run")
    for name, text in files.items():
        write(root, **{f"sys__fs__cgroup__memory__run__memory.{name}": text})
    return root


def pressure(full: float) -> str:
    return f"some avg10=90.00 avg60=1.00 avg300=0.00 total=5\nfull avg10={full} avg60=0 total=1"


def test_plenty_is_no_shortage(tmp_path: Path) -> None:
    group_v2(machine(tmp_path, 2 * GIB), max=GIB, current=100 * MIB, high="max", stat="")
    assert HeadroomWatch(root=tmp_path).shortage() is None


def test_an_unreadable_machine_is_no_shortage(tmp_path: Path) -> None:
    assert HeadroomWatch(root=tmp_path).shortage() is None


def test_room_is_what_the_tightest_place_leaves_beside_its_headroom(tmp_path: Path) -> None:
    group_v2(machine(tmp_path, 2 * GIB), max=GIB, current=100 * MIB, high="max", stat="")
    room = HeadroomWatch(4 * MIB, root=tmp_path).room()
    assert room is not None and room.source.startswith("memory.max of ")
    assert room.free_bytes == GIB - 104 * MIB
    room = HeadroomWatch(root=machine(tmp_path, 10 * MIB)).room()
    assert room is not None and (room.source, room.free_bytes) == ("MemAvailable", 0)
    assert HeadroomWatch(root=tmp_path / "nothing").room() is None


def test_available_memory_below_two_percent_is_short(tmp_path: Path) -> None:
    shortage = HeadroomWatch(root=machine(tmp_path, 100 * MIB)).shortage()
    assert shortage is not None
    assert shortage.source == "MemAvailable"
    assert shortage.missing_bytes == int(0.02 * 8 * GIB) - 100 * MIB
    error = shortage.error("epoch 1")
    assert (error.exit_code, error.missing_bytes) == (3, shortage.missing_bytes)
    assert "100.0 MiB left by MemAvailable" in str(error)


def test_a_headroom_that_was_asked_for(tmp_path: Path) -> None:
    machine(tmp_path, 100 * MIB)
    assert HeadroomWatch(100 * MIB, root=tmp_path).shortage() is None
    shortage = HeadroomWatch(101 * MIB, root=tmp_path).shortage()
    assert shortage is not None and shortage.missing_bytes == MIB


@pytest.mark.parametrize(("total", "expected"), [(MIB, 8), (2 * GIB, 40), (64 * GIB, 256)])
def test_the_default_has_bounds(total: int, expected: int) -> None:
    assert default_headroom_bytes(total) // MIB == expected


def test_the_limit_of_a_group_v1_counts(tmp_path: Path) -> None:
    group_v1(
        machine(tmp_path, 4 * GIB),
        limit_in_bytes=200 * MIB,
        usage_in_bytes=199 * MIB,
        stat="total_inactive_file 1048576\ntotal_active_file 2097152",
    )
    shortage = HeadroomWatch(root=tmp_path).shortage()
    assert shortage is not None
    # 1 MiB free, 3 MiB of cached files, 8 MiB wanted.
    assert (shortage.available_bytes, shortage.missing_bytes) == (4 * MIB, 4 * MIB)
    assert shortage.source.startswith("memory.limit_in_bytes of ")


def test_cached_files_of_a_group_can_be_dropped(tmp_path: Path) -> None:
    """Mapped weights fill a group up to its limit; the kernel takes them back when it must."""
    stat = f"inactive_file {20 * MIB}\nactive_file {60 * MIB}"
    group_v2(machine(tmp_path, 4 * GIB), max=200 * MIB, current=200 * MIB, stat=stat)
    assert HeadroomWatch(root=tmp_path).shortage() is None


@pytest.mark.parametrize("soft", ["max", str(150 * MIB)])
def test_the_lower_of_both_limits_of_a_group_v2_counts(tmp_path: Path, soft: str) -> None:
    group_v2(machine(tmp_path, 4 * GIB), max=200 * MIB, current=145 * MIB, high=soft, stat="")
    group = read_cgroup_memory(tmp_path)
    shortage = HeadroomWatch(root=tmp_path).shortage()
    assert group is not None
    if soft == "max":
        assert (group.limit_name, shortage) == ("memory.max", None)
    else:
        assert group.limit_name == "memory.high"
        assert shortage is not None and shortage.missing_bytes == 3 * MIB


def test_the_limit_of_a_parent_counts(tmp_path: Path) -> None:
    group_v2(machine(tmp_path, 4 * GIB), max="max", current=10 * MIB)
    write(tmp_path, **{"sys__fs__cgroup__memory.max": 64 * MIB})
    write(tmp_path, **{"sys__fs__cgroup__memory.current": 63 * MIB})
    shortage = HeadroomWatch(root=tmp_path).shortage()
    assert shortage is not None and shortage.available_bytes == MIB


def test_the_worst_place_is_named(tmp_path: Path) -> None:
    group_v2(machine(tmp_path, 160 * MIB), max=200 * MIB, current=199 * MIB)
    shortage = HeadroomWatch(root=tmp_path).shortage()
    assert shortage is not None and shortage.source.startswith("memory.max of ")


def test_pressure_counts_where_little_is_left(tmp_path: Path) -> None:
    write(machine(tmp_path, 500 * MIB), proc__pressure__memory=pressure(35.5))
    shortage = HeadroomWatch(root=tmp_path).shortage()
    assert shortage is not None
    assert (shortage.stalled_percent, shortage.missing_bytes) == (35.5, 0)
    assert "every task stalled for 36 %" in str(shortage.error("x"))


def test_pressure_of_somebody_else_does_not_count(tmp_path: Path) -> None:
    write(machine(tmp_path, 4 * GIB), proc__pressure__memory=pressure(35.5))
    assert HeadroomWatch(root=tmp_path).shortage() is None


def test_some_tasks_stalled_or_few_seconds_do_not_count(tmp_path: Path) -> None:
    write(machine(tmp_path, 500 * MIB), proc__pressure__memory=pressure(3.0))
    assert HeadroomWatch(root=tmp_path).shortage() is None


def test_a_group_v2_has_a_pressure_of_its_own(tmp_path: Path) -> None:
    write(machine(tmp_path, 4 * GIB), proc__pressure__memory=pressure(0.0))
    group_v2(tmp_path, max=200 * MIB, current=180 * MIB, pressure=pressure(50.0), stat="")
    shortage = HeadroomWatch(root=tmp_path).shortage()
    assert shortage is not None and shortage.stalled_percent == 50.0


def test_after_a_step_down_the_old_average_is_left_out(tmp_path: Path) -> None:
    write(machine(tmp_path, 500 * MIB), proc__pressure__memory=pressure(35.5))
    now_s = [100.0]
    watch = HeadroomWatch(root=tmp_path, clock=lambda: now_s[0])
    watch.settle()
    assert watch.shortage() is None
    now_s[0] += SETTLING_S
    assert watch.shortage() is not None


@pytest.mark.parametrize("junk", ["", "full avg10=nan", "full avg10=.", "some\0thing"])
def test_junk_is_no_pressure(tmp_path: Path, junk: str) -> None:
    write(machine(tmp_path, 500 * MIB), proc__pressure__memory=junk)
    assert HeadroomWatch(root=tmp_path).shortage() is None
