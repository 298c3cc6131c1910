"""What CUDA's runtime says of the device, read from a library that stands for it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from s2a_edge.run import device_memory
from s2a_edge.run.device_memory import CudaRuntime, context_cost, cuda_runtime
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.units import GIB, MIB

_CODE = """
#include <stddef.h>
static int asked;
int cudaMemGetInfo(size_t *available, size_t *all) {{
  *all = {total};
  *available = *all - (size_t)(++asked > 1 ? {later} : {first});
  return {status};
}}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {{
  *value = attribute == 18 && device == 0 && {integrated};
  return 0;
}}
int cudaGetDeviceCount(int *n) {{ *n = 1; return {status}; }}
"""
MakeRuntime = Callable[..., CudaRuntime]


@pytest.fixture
def make(tmp_path: Path) -> MakeRuntime:
    if shutil.which("cc") is None:
        pytest.skip("takes a C compiler")

    def compiled(first: int = 0, later: int = 0, *, integrated: bool = False, status: int = 0,
                 ) -> CudaRuntime:
        source, library = tmp_path / "cudart.c", tmp_path / f"libcudart{first}-{later}.so"
        source.write_text(_CODE.format(total=8 * GIB, first=first, later=later, status=status,
                                       integrated=int(integrated)))
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
        return cuda_runtime([str(library)])

    return compiled


def test_memory_of_the_device(make: MakeRuntime) -> None:
    memory = make(first=MIB, integrated=True).memory()
    assert (memory.free_bytes, memory.total_bytes) == (8 * GIB - MIB, 8 * GIB)
    assert memory.integrated
    assert make(later=1).devices() == 1


def test_a_discrete_device_loses_context_and_libraries(make: MakeRuntime) -> None:
    cost = context_cost(make(first=200 * MIB, later=350 * MIB))
    assert cost.size_bytes == 350 * MIB
    assert cost.after.free_bytes == 8 * GIB - 350 * MIB


def test_where_memory_is_shared_what_the_machine_lost_counts(
    make: MakeRuntime, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA's own figure shrinks with the page cache there: MemAvailable is the measure."""
    left = iter((6 * GIB, 5 * GIB))
    monkeypatch.setattr(device_memory, "available_bytes", lambda: next(left))
    cost = context_cost(make(first=10 * MIB, later=30 * MIB, integrated=True))
    assert cost.size_bytes == 1 * GIB


def test_without_a_driver_it_is_one_clear_error(make: MakeRuntime) -> None:
    with pytest.raises(DeviceError, match="CUDA error 35"):
        make(later=2, status=35)
    with pytest.raises(DeviceError, match="its runtime library"):
        cuda_runtime(["libnothing-of-the-kind.so.1"])


def test_the_process_that_measures_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without CUDA: the process ends with our error, not with a traceback."""
    if any(Path("/dev").glob("nvidia*")):
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError) as caught:
        device_memory.measured_in_a_process()
    assert "CUDA" in str(caught.value)
    assert "Traceback" not in str(caught.value)
