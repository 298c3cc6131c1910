"""Memory of a process and of the machine, on fixture trees and on this machine."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.run.cgroup_memory import read_cgroup_memory
from s2a_edge.run.process_memory import available_bytes, read_memory, read_sizes, reset_peak
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.units import GIB, MIB

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the real /proc")

MEMINFO = "MemTotal:        8000000 kB\nMemFree: 100 kB\nMemAvailable:    6291456 kB\n"
STATUS = """\
Name:\tpython
VmPeak:\t 900000 kB
VmHWM:\t 300000 kB
VmRSS:\t 250000 kB
RssAnon:\t 200000 kB
RssFile:\t  49000 kB
RssShmem:\t  1000 kB
VmSwap:\t    12 kB
Threads:\t2
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_a_process_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"proc/7/status": STATUS, "proc/7/smaps_rollup": "00-ff\nPss:  240000 kB\n"})
    memory = read_memory(7, root=tmp_path)
    assert memory.rss_bytes == 250_000 * 1024
    assert memory.anon_bytes + memory.file_bytes + memory.shmem_bytes == memory.rss_bytes
    assert memory.peak_rss_bytes == 300_000 * 1024
    assert memory.pss_bytes == 240_000 * 1024
    assert memory.swap_bytes == 12 * 1024


def test_an_old_kernel_has_no_proportional_size(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/status": STATUS})
    assert read_memory(root=tmp_path).pss_bytes is None


def test_a_lagging_peak_is_at_least_what_is_resident(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/status": STATUS.replace("300000", "249000")})
    assert read_memory(root=tmp_path).peak_rss_bytes == 250_000 * 1024


def test_elsewhere_than_on_linux_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="Linux"):
        read_memory(root=tmp_path)
    with pytest.raises(DeviceError, match="Linux"):
        available_bytes(root=tmp_path)
    assert reset_peak(root=tmp_path) is False


@given(st.binary(max_size=200))
def test_junk_is_passed_over(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "junk"
    file.write_bytes(junk)
    assert all(size >= 0 for size in read_sizes(file).values())


def test_without_a_limit_all_that_is_available_counts(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO})
    assert available_bytes(root=tmp_path) == 6 * GIB


class TestCgroupV2:
    def test_a_limit_bounds_it(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/system.slice/train.service\n",
                "sys/fs/cgroup/system.slice/train.service/memory.max": f"{GIB}\n",
                "sys/fs/cgroup/system.slice/train.service/memory.current": f"{700 * MIB}\n",
                "sys/fs/cgroup/system.slice/train.service/memory.stat": (
                    f"anon 5\nfile 9\ninactive_file {300 * MIB}\n"
                ),
            },
        )
        group = read_cgroup_memory(tmp_path)
        assert group is not None
        assert (group.version, group.limit_bytes, group.usage_bytes) == (2, GIB, 400 * MIB)
        assert available_bytes(root=tmp_path) == 624 * MIB

    def test_max_is_no_limit(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.current": "1\n",
            },
        )
        assert read_cgroup_memory(tmp_path) is None
        assert available_bytes(root=tmp_path) == 6 * GIB

    def test_a_parents_limit_counts(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": str(GIB),
                "sys/fs/cgroup/a/memory.current": str(GIB // 2),
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
        )
        group = read_cgroup_memory(tmp_path)
        assert group is not None
        assert group.available_bytes == GIB // 2
        assert group.path.endswith("cgroup/a")

    def test_in_a_container_the_mount_point_is_the_group(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            {
                "proc/self/cgroup": "0::/../../docker/abc\n",
                "sys/fs/cgroup/memory.max": str(GIB),
                "sys/fs/cgroup/memory.current": "0",
            },
        )
        group = read_cgroup_memory(tmp_path)
        assert group is not None
        assert group.limit_bytes == GIB


class TestCgroupV1:
    FILES: dict[str, str] = {  # noqa: RUF012 a table of this test, never changed
        "proc/self/cgroup": "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/x\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{512 * MIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {128 * MIB}\n",
    }

    def test_a_limit_bounds_it(self, tmp_path: Path) -> None:
        group = read_cgroup_memory(write(tmp_path, self.FILES))
        assert group is not None
        assert (group.version, group.available_bytes) == (1, 640 * MIB)

    def test_the_largest_page_multiple_is_no_limit(self, tmp_path: Path) -> None:
        unlimited = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
        assert read_cgroup_memory(write(tmp_path, self.FILES | unlimited)) is None

    def test_over_the_limit_nothing_is_left(self, tmp_path: Path) -> None:
        over = {"sys/fs/cgroup/memory/memory.usage_in_bytes": str(2 * GIB)}
        group = read_cgroup_memory(write(tmp_path, self.FILES | over))
        assert group is not None
        assert group.available_bytes == 0


@pytest.mark.parametrize(
    "junk", ["", ":", "0:", "0::", "0::/\x00", "4:memory:/" + "a/" * 500, "💥"]
)
def test_junk_groups_are_passed_over(tmp_path: Path, junk: str) -> None:
    assert read_cgroup_memory(write(tmp_path, {"proc/self/cgroup": junk})) is None


@linux
def test_this_process_grows_by_what_it_touches() -> None:
    before = read_memory()
    with mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        during = read_memory()
    assert during.anon_bytes - before.anon_bytes >= 30 * MIB
    assert during.peak_rss_bytes >= during.rss_bytes >= during.anon_bytes


@linux
def test_the_peak_can_start_anew() -> None:
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    high = read_memory().peak_rss_bytes
    if reset_peak():
        assert read_memory().peak_rss_bytes < high - 30 * MIB
    else:
        assert read_memory().peak_rss_bytes >= high


@linux
def test_this_machine_has_memory_left() -> None:
    assert 0 < available_bytes() < 2**50
