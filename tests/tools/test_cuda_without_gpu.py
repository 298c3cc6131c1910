"""The stand-ins for CUDA's libraries load, count memory, and the runtime's placements are read."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from s2a_edge.run.placement import placed_on
from tools.cuda_without_gpu import graphs_of, make_libraries, provider_library

_LOG = """\
2026 [I:onnxruntime:, a.cc:1 GetCapability] CUDA kernel not found for: BitShift
2026 [V:onnxruntime:, session_state.cc:1260 VerifyEachNodeIsAssignedToAnEp] Node placements
2026 [V:onnxruntime:, s.cc:1 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1
2026 [V:onnxruntime:, s.cc:1 VerifyEachNodeIsAssignedToAnEp]   BitShift (shift)
2026 [V:onnxruntime:, s.cc:1 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 1
2026 [V:onnxruntime:, s.cc:1 VerifyEachNodeIsAssignedToAnEp]   Add (sum)
2026 [V:onnxruntime:, s.cc:2 Other]  more
"""  # noqa: E501  # as the runtime writes it


def test_placements_are_read_from_the_log() -> None:
    assert placed_on(_LOG, "CPUExecutionProvider") == ["BitShift (shift)"]
    assert placed_on(_LOG, "CUDAExecutionProvider") == ["Add (sum)"]


def test_a_bundles_graphs_without_those_for_the_cpu(tmp_path: Path) -> None:
    for name in ("train_b4.onnx", "train_b4.native.onnx", "infer.onnx", "eval.onnx"):
        (tmp_path / name).touch()
    assert [f.name for f in graphs_of([tmp_path])] == ["eval.onnx", "train_b4.onnx"]


@pytest.mark.skipif(any(shutil.which(tool) is None for tool in ("gcc", "nm", "objdump", "strings")),
                    reason="takes gcc and binutils")
def test_the_libraries_count_memory(tmp_path: Path) -> None:
    """A library that asks for two functions of CUDA stands for the provider."""
    provider = provider_library(tmp_path / "wheel")
    provider.parent.mkdir(parents=True)
    (tmp_path / "cuda.c").write_text("int cudaMalloc(void){return 0;} int cudaNew(void){return 0;}")
    (tmp_path / "cuda.map").write_text("libcudart.so.12 { global: cudaMalloc; cudaNew; };")
    runtime = tmp_path / "libcudart.so.12"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "cuda.c", "-o", runtime,
                    "-Wl,-soname,libcudart.so.12", f"-Wl,--version-script={tmp_path / 'cuda.map'}"],
                   check=True)
    (tmp_path / "p.c").write_text("int cudaMalloc(void**, long); int cudaNew(void);\n"
                                  "int p(void **x) { return cudaMalloc(x, 1000) + cudaNew(); }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "p.c", runtime, "-o", provider],
                   check=True)
    made = tmp_path / "made"
    made.mkdir()
    make_libraries(tmp_path / "wheel", made)
    assert {f.name for f in made.glob("*.so*") if f.suffix != ".map"} == {
        "libcudart.so.12", "libcuda.so.1"}
    library = ctypes.CDLL(str(made / "libcudart.so.12"))
    library.shim_held.restype = ctypes.c_size_t
    memory = ctypes.c_void_p()
    assert library.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(1000)) == 0
    assert 1000 <= library.shim_held() < 1100
    assert library.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(1 << 40)) == 2
