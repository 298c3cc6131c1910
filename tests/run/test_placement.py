"""The node that keeps a graph from CUDA is named."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort
import pytest

from s2a_edge.run.engine import Engine
from s2a_edge.run.placement import FALLBACK_REFUSED, left_to_the_cpu, said_while
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.onnx_smallest import negation_model

_NO_KERNEL = ("[I:onnxruntime:, cuda_execution_provider.cc:2719 GetCapability] CUDA kernel not "
              "found in registries for Op type: {} node name: {}\n")
_PLACED = """\
[V:onnxruntime:, s.cc:1260 VerifyEachNodeIsAssignedToAnEp] Node placements
[V:onnxruntime:, s.cc:1 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CPUExecutionProvider].
[V:onnxruntime:, s.cc:1 VerifyEachNodeIsAssignedToAnEp]   ConvTranspose (back)
[V:onnxruntime:, s.cc:1 VerifyEachNodeIsAssignedToAnEp]   MemcpyToHost (Memcpy)
"""


def test_nodes_without_kernel_come_first_then_those_that_were_refused() -> None:
    assert left_to_the_cpu(_NO_KERNEL.format("BitShift", "shift") + _PLACED) == "BitShift shift"
    assert left_to_the_cpu(_PLACED) == "ConvTranspose (back)"
    assert left_to_the_cpu("") == "a node that it does not name"
    many = "".join(_NO_KERNEL.format("Celu", f"n{i}") for i in range(5))
    assert left_to_the_cpu(many) == "Celu n0, Celu n1, Celu n2 and 2 more"


def test_what_is_said_is_kept_and_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def make() -> None:
        os.write(2, b"from a library\n")
        raise RuntimeError("as the runtime does")

    assert said_while(make) == "from a library\n"
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_the_engine_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that refuses as CUDA's does, and says why when it is asked to talk."""
    path = tmp_path / "train_b4.onnx"
    path.write_bytes(negation_model())

    def refuse(file: str, options: ort.SessionOptions, providers: list[object]) -> None:
        if options.log_severity_level == 0:
            os.write(2, _NO_KERNEL.format("BitwiseAnd", "halves").encode())
            return
        raise RuntimeError(f"This session contains graph nodes, but {FALLBACK_REFUSED}")

    engine = Engine(arena_limit_bytes=None)
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(DeviceError, match=r"train_b4.onnx: .* got none for BitwiseAnd halves"):
        engine.load(path)
