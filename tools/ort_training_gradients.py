"""Gradients of a forward graph by onnxruntime-training's gradient builder, in its environment.

    $PYTHON -m tools.ort_training_gradients FOLDER...

Each folder has ``forward.onnx`` (inputs: data and trainables; first output: the loss) and
``feeds.npz``; ``trainables.json`` names the inputs to differentiate for. Writes
``gradients.npz``, by name, or ``failure.txt`` with what the builder lacks.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tools.ort_training_environment import import_without_torch

import_without_torch()
from onnxruntime.capi._pybind_state import GradientGraphBuilder  # noqa: E402

_LACKS = (r"gradient builder has not been registered: (\w+)", r"No gradient.*?for .*?(\w+)")


def main() -> int:
    ort.set_default_logger_severity(3)
    for folder in map(Path, sys.argv[1:]):
        try:
            np.savez(folder / "gradients.npz", **gradients(folder))
        except (RuntimeError, ort.capi.onnxruntime_pybind11_state.Fail,
                ort.capi.onnxruntime_pybind11_state.NotImplemented,
                ort.capi.onnxruntime_pybind11_state.InvalidGraph,
                ort.capi.onnxruntime_pybind11_state.InvalidArgument,
                ort.capi.onnxruntime_pybind11_state.RuntimeException) as error:
            (folder / "failure.txt").write_text(reason(str(error)), encoding="utf-8")
    return 0


def reason(said: str) -> str:
    """The operator without a gradient; else what the runtime said, shortened."""
    found = next((m for pattern in _LACKS if (m := re.search(pattern, said))), None)
    if found is not None:
        return f"no gradient of {found[1]}"
    said = said.split("Status Message: ")[-1].strip()
    return re.sub(r"\s+", " ", re.sub(r"/\S+/", "", said))[:240]


def gradients(folder: Path) -> dict[str, Any]:
    """Builds the gradient graph and runs it once."""
    model = onnx.load(folder / "forward.onnx")
    names = json.loads((folder / "trainables.json").read_text())
    with np.load(folder / "feeds.npz") as archive:
        feeds = dict(archive)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":  # whose gradient takes mean and deviation
            del node.output[1:]
            node.output.extend(f"{node.output[0]}_{part}" for part in ("mean", "deviation"))
    # The builder alone. `generate_artifacts` runs fusions before it; one of 1.19.2 takes a group
    # norm that is spelled out for a layer norm, with another result.
    loss = model.graph.output[0].name
    builder = GradientGraphBuilder(onnx.shape_inference.infer_shapes(model).SerializeToString(),
                                   {loss}, set(names), loss, ort.SessionOptions())
    builder.build()
    built = onnx.load_from_string(builder.get_model())
    built.ir_version = min(built.ir_version, 10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(built.SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    made = session.run([f"{name}_grad" for name in names],
                       {n: a for n, a in feeds.items() if n in wanted})
    return dict(zip(names, made, strict=True))


if __name__ == "__main__":
    sys.exit(main())
