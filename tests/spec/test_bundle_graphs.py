from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.bundle_write import write_bundle
from s2a_edge.spec.errors import BundleError
from tests.spec import bundle_samples


def edit(model: onnx.ModelProto, change: str) -> None:
    """Make a training graph that a board should not load."""
    graph = model.graph
    entries = graph.initializer[0].external_data
    inner = helper.make_graph([], "inner", [], [], initializer=[bundle_samples.external_weight()])
    changes: dict[str, Callable[[], object]] = {
        "location": lambda: setattr(entries[0], "value", "../weights.bin"),
        "memory address": lambda: setattr(entries[0], "value", "*/_ORT_MEM_ADDR_/*"),
        "past the end": lambda: setattr(entries[1], "value", "4096"),
        "length": lambda: setattr(entries[2], "value", "121"),
        "custom operator": lambda: setattr(graph.node[0], "domain", "evil"),
        "native operator": lambda: setattr(graph.node[0], "domain", "s2a.edge"),
        "microsoft operator": lambda: setattr(graph.node[0], "domain", "com.microsoft"),
        "subgraph": lambda: graph.node[0].attribute.append(helper.make_attribute("body", inner)),
        "function": lambda: model.functions.add(name="F", domain="d"),
        "opset": lambda: setattr(model.opset_import[0], "version", 24),
        "no opset": lambda: model.opset_import.__delitem__(0),
        "ir": lambda: setattr(model, "ir_version", 11),
        "renamed input": lambda: setattr(graph.input[0], "name", "y"),
        "input dtype": lambda: setattr(graph.input[0].type.tensor_type, "elem_type", 7),
        "batch": lambda: setattr(graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 3),
        "symbolic": lambda: setattr(graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "N"),
        "lost output": lambda: graph.output.__delitem__(-1),
        "extra output": lambda: graph.output.append(graph.input[0]),
        "repeated output": lambda: graph.output.append(graph.output[0]),
        "sparse": lambda: graph.sparse_initializer.add(dims=[1]),
    }
    changes[change]()


@pytest.mark.parametrize(
    ("change", "expected", "got"),
    [
        ("location", "external data in weights.bin only", "../weights.bin"),
        ("memory address", "external data in weights.bin only", "_ORT_MEM_ADDR_"),
        ("past the end", "within 120 bytes of weights.bin", "at 4096"),
        ("length", "length of 120 bytes", "121"),
        ("custom operator", "standard ONNX operators", "evil.MatMul"),
        ("native operator", "standard ONNX operators", "s2a.edge.MatMul"),
        ("microsoft operator", "standard ONNX operators", "com.microsoft.MatMul"),
        ("subgraph", "plain nodes", "a graph inside"),
        ("function", "plain nodes", "functions"),
        ("sparse", "plain nodes", "sparse"),
        ("opset", "opset 1 to 23", "24"),
        ("no opset", "opset 1 to 23", "0"),
        ("ir", "IR version 1 to 10", "11"),
        ("renamed input", "no such input", "y float32 [1, 6]"),
        ("input dtype", "x float32 [1, 6]", "x int64 [1, 6]"),
        ("batch", "x float32 [1, 6]", "x float32 [3, 6]"),
        ("symbolic", "x float32 [1, 6]", "x float32 ['N', 6]"),
        ("lost output", "acc_out.head.weight float32 [5, 3]", "1 missing"),
        ("extra output", "no such output", "x float32"),
        ("repeated output", "no such output", "loss float32 []"),
    ],
)
def test_graphs_that_a_board_should_not_load(
    tmp_path: Path, change: str, expected: str, got: str
) -> None:
    staging = bundle_samples.stage(tmp_path / "staging")
    model = bundle_samples.models()["train_b1.onnx"]
    edit(model, change)
    (staging / "train_b1.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError) as error:
        write_bundle(staging, bundle_samples.manifest(), tmp_path / "b")
    assert error.value.where == "train_b1.onnx"
    assert expected in error.value.expected
    assert got in error.value.got.replace('"', "'").replace("\\'", "'")
    assert not (tmp_path / "b").exists()


def test_an_opened_graph_is_checked_too(tmp_path: Path) -> None:
    """A bundle whose checksums are right but whose graph reads another file."""
    folder = bundle_samples.write_sample(tmp_path / "b")
    model = bundle_samples.models()["eval.onnx"]
    model.graph.initializer[0].external_data[0].value = "/etc/shadow"
    before = hashlib.sha256((folder / "eval.onnx").read_bytes()).hexdigest()
    (folder / "eval.onnx").write_bytes(model.SerializeToString())
    after = hashlib.sha256((folder / "eval.onnx").read_bytes()).hexdigest()
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(sums.replace(before, after))
    with pytest.raises(BundleError, match=r"eval.onnx: .*'backbone.weight' in '/etc/shadow'"):
        Bundle.open(folder)


def test_the_skeleton_has_no_external_data(tmp_path: Path) -> None:
    staging = bundle_samples.stage(tmp_path / "staging")
    model = bundle_samples.models()["infer.onnx"]
    model.graph.initializer.append(bundle_samples.external_weight())
    (staging / "infer.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"infer.onnx: .*within 0 bytes"):
        write_bundle(staging, bundle_samples.manifest(), tmp_path / "b")


def test_sgd_has_one_state(tmp_path: Path) -> None:
    staging = bundle_samples.stage(tmp_path / "staging")
    base = bundle_samples.manifest()
    sgd = dataclasses.replace(base, recipe=dataclasses.replace(base.recipe, optimizer="sgd"))
    with pytest.raises(BundleError, match=r"optimizer.onnx: expected no such input, got 'beta1"):
        write_bundle(staging, sgd, tmp_path / "b")
    model = bundle_samples.models()["optimizer.onnx"]
    gone = ("beta2", "eps", "correction")
    for values in (model.graph.input, model.graph.output):
        kept = [v for v in values if not v.name.startswith(gone) and v.name not in ("v", "v_out")]
        for value in kept:
            value.name = value.name.replace("beta1", "momentum")
        copies = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
        del values[:]
        values.extend(copies)
    (staging / "optimizer.onnx").write_bytes(model.SerializeToString())
    with Bundle.open(write_bundle(staging, sgd, tmp_path / "b")) as bundle:
        assert bundle.manifest.recipe.optimizer == "sgd"
