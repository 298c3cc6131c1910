"""Artifacts as files: names, shapes and types that the On-Device Training API looks for.

``tests/ort_training`` runs them with that API; this needs nothing but the compiler.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.ort_training.artifacts import pack_ort_training
from s2a_edge.spec.errors import UsageError
from tests.pack.compiled import batch_of, compiled, parameters, run

MODELS = ("tiny_vit", "tiny_resnet")
BATCH = 4


def recipe(**changes: Any) -> PackOptions:
    given = {"classes": 5, "micro_batches": (BATCH,), "effective_batch": BATCH, "bits": 4}
    return PackOptions(**{**given, **changes})


@pytest.fixture(scope="module", params=MODELS)
def artifacts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / str(request.param)
    return pack_ort_training(f"tests.pack.models:{request.param}", out, recipe()).path


def shapes(values: Any) -> dict[str, tuple[int, ...]]:
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def description(folder: Path) -> Mapping[str, Any]:
    made: Mapping[str, Any] = json.loads((folder / "artifacts.json").read_text())
    return made


def test_every_parameter_has_its_buffer_flag_and_start_value(artifacts: Path) -> None:
    about = description(artifacts)
    model = onnx.load(artifacts / "training_model.onnx", load_external_data=False)
    inputs, outputs = shapes(model.graph.input), shapes(model.graph.output)
    names = {p["name"]: tuple(p["shape"]) for p in about["parameters"]}
    assert names
    buffers = {f"{name}_grad.accumulation.buffer": shape for name, shape in names.items()}
    users = {name: tuple(shape) for name, shape in about["training_inputs"].items()}
    assert inputs == {**users, **names, **buffers, "lazy_reset_grad": (1,)}
    assert list(inputs)[:len(users)] == list(users)
    flags = {f"{name}_grad.accumulation.out": (1,) for name in names}
    assert outputs == {"loss": (), "logits": (BATCH, 5), **flags}
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input,
                                                            *model.graph.output)}
    flag_names = {*flags, "lazy_reset_grad"}
    assert {n for n, t in types.items() if t == onnx.TensorProto.BOOL} == flag_names
    content = (artifacts / "checkpoint").read_bytes()
    assert content[4:8] == b"ODTC"
    assert all(name.encode() in content for name in names)


def test_accumulators_take_the_place_of_sums(artifacts: Path) -> None:
    model = onnx.load(artifacts / "training_model.onnx", load_external_data=False)
    nodes = [n for n in model.graph.node if n.op_type == "InPlaceAccumulatorV2"]
    assert {n.domain for n in nodes} == {"com.microsoft"}
    assert len(nodes) == len(description(artifacts)["parameters"])
    made = {name for n in model.graph.node for name in n.output}
    for node in nodes:
        buffer, gradient, reset = node.input
        assert (reset, buffer) == ("lazy_reset_grad",
                                   node.output[0].replace(".out", ".buffer"))
        assert gradient in made
    assert not any(name.startswith("acc") for n in model.graph.node for name in n.input
                   if "accumulation" not in name)


def test_versions_are_those_that_1_19_reads(artifacts: Path) -> None:
    for name in ("training_model", "eval_model", "optimizer_model"):
        model = onnx.load(artifacts / f"{name}.onnx", load_external_data=False)
        assert model.ir_version <= 10
        assert {o.version for o in model.opset_import if o.domain == ""} <= {18, 21}


def test_the_optimizer_takes_sequences(artifacts: Path) -> None:
    model = onnx.load(artifacts / "optimizer_model.onnx")
    (node,) = model.graph.node
    assert node.op_type == "AdamWOptimizer"
    assert list(node.input) == [v.name for v in model.graph.input] == [
        "learning_rate", "step", "params", "gradients", "first_order_moments",
        "second_order_moments"]


def test_evaluation_has_the_loss_of_the_training_graph(artifacts: Path) -> None:
    made = compiled(artifacts.name)
    data = batch_of(made, BATCH)
    values = {**data, **parameters(made)}
    exact = run(made.references[BATCH].model, values)
    model = artifacts / "eval_model.onnx"
    inputs = shapes(onnx.load(model, load_external_data=False).graph.input)
    got = run(model, {name: values[name] for name in inputs})
    np.testing.assert_allclose(got["loss"], exact["loss"], rtol=1e-5)
    np.testing.assert_allclose(got["logits"], exact["logits"], rtol=1e-4, atol=1e-5)


def test_checksums_cover_every_file(artifacts: Path) -> None:
    lines = (artifacts / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in artifacts.iterdir()}
    assert sums == {name: digest for name, digest in files.items() if name != "SHA256SUMS"}


def test_artifacts_are_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "made"
    pack_ort_training("tests.pack.models:tiny_resnet", out, recipe(bits=8))
    pack_ort_training("tests.pack.models:tiny_resnet", out, recipe(bits=32, optimizer="sgd"))
    assert description(out)["recipe"]["bits"] == 32
    assert [n.op_type for n in onnx.load(out / "optimizer_model.onnx").graph.node] == [
        "SGDOptimizerV2"]
    assert [f.name for f in tmp_path.iterdir()] == ["made"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.jpg").touch()
    with pytest.raises(UsageError, match="artifacts to replace"):
        pack_ort_training("tests.pack.models:tiny_resnet", other, recipe())


@pytest.mark.parametrize("changes", [{"micro_batches": (2, 4)}, {"budget_bytes": 2**30}])
def test_what_artifacts_cannot_have_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        pack_ort_training("tests.pack.models:tiny_resnet", tmp_path / "x", recipe(**changes))
