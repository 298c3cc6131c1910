"""What is asked of the installed onnxruntime before anything is made with it."""

from __future__ import annotations

import onnxruntime
import pytest

from s2a_edge.run.installed_runtime import require_compatible, require_runtime, runtime_version
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.manifest import Compat

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has the CUDA provider")
def test_a_provider_that_is_not_there_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="expected CUDAExecutionProvider"):
        require_runtime("cuda")


def test_a_bundle_says_what_it_runs_on() -> None:
    require_compatible(Compat("1.19", ("cpu",)), "cpu")
    with pytest.raises(DeviceError, match=r"version 99\.1 or newer"):
        require_compatible(Compat("99.1", ("cpu",)), "cpu")
    with pytest.raises(DeviceError, match="runs on the cpu provider"):
        require_compatible(Compat("1.19", ("cuda",)), "cpu")


@pytest.mark.parametrize(
    ("text", "version"), [("1.22.1", (1, 22)), ("1.9.0", (1, 9)), ("1.25.0+cu126", (1, 25))]
)
def test_versions_compare_as_numbers(text: str, version: tuple[int, int]) -> None:
    assert runtime_version(text) == version
