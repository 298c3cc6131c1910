from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from s2a_edge.spec import onnx_export
from s2a_edge.spec.errors import BundleError, InternalError, SourceError, StorageError
from s2a_edge.spec.onnx_wire import (
    ExternalData,
    ModelFacts,
    NamedTensor,
    ValueFacts,
    export_model,
    initializer_stream,
    lint_model,
)
from s2a_edge.spec.protobuf_wire import WireReader, bytes_field, integer_field, varint

F32 = TensorProto.FLOAT


def external_tensor(name: str, dims: list[int], **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=dims, data_type=F32, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(graph: onnx.GraphProto, **kwargs: Any) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **kwargs)


def linear_model(weights: list[TensorProto] | None = None) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
        helper.make_node("FusedMatMul", ["h", "w"], ["y"], domain="com.microsoft", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F32, ["N", 6])],
        [helper.make_tensor_value_info("y", F32, [2, 6]), helper.make_empty_tensor_value_info("?")],
        initializer=weights or [],
    )
    return model_of(graph)


def branchy_model() -> onnx.ModelProto:
    """External data in every corner: an If branch, a Constant, a sparse initializer, functions."""
    inner = helper.make_graph(
        [helper.make_node("Relu", ["deep"], ["r"])],
        "then",
        [],
        [helper.make_tensor_value_info("r", F32, [4])],
        initializer=[external_tensor("deep", [4], location="../a", offset="8", length="16")],
    )
    branch = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["k"])
    attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(external_tensor("const", [2], location="/etc/passwd"))
    constant.attribute.append(attribute)
    graph = helper.make_graph([branch, constant], "g", [], [])
    sparse = graph.sparse_initializer.add(dims=[9])
    sparse.values.CopyFrom(external_tensor("sparse", [1], location="b"))
    model = model_of(graph)
    function = helper.make_function("own", "F", ["a"], ["b"], [], [helper.make_opsetid("", 21)])
    model.functions.append(function)
    return model


def test_facts_agree_with_onnx() -> None:
    weight = external_tensor("w", [6, 6], location="weights.bin", offset="4096", length="144")
    facts = lint_model(linear_model([weight]).SerializeToString())
    assert facts == ModelFacts(
        ir_version=10,
        opset_imports={"": 21, "com.microsoft": 1},
        operators=frozenset({("", "MatMul"), ("com.microsoft", "FusedMatMul")}),
        external_data=(ExternalData("w", "weights.bin", 4096, 144, 144),),
        initializers=frozenset({"w"}),
        inputs=(ValueFacts("x", "float32", ("N", 6)),),
        outputs=(ValueFacts("y", "float32", (2, 6)), ValueFacts("?", "type 0", None)),
        node_count=2,
        has_subgraphs=False,
        has_functions=False,
        has_sparse=False,
    )


def test_scalars_have_a_shape_and_ai_onnx_is_the_default_domain() -> None:
    node = helper.make_node("Identity", ["x"], ["y"], domain="ai.onnx")
    scalar = helper.make_tensor_value_info("x", TensorProto.INT64, [])
    facts = lint_model(model_of(helper.make_graph([node], "g", [scalar], [])).SerializeToString())
    assert facts.inputs == (ValueFacts("x", "int64", ()),)
    assert facts.operators == {("", "Identity")}


def test_external_data_is_found_in_every_corner(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(branchy_model().SerializeToString())
    facts = lint_model(path)
    assert {(e.tensor, e.location) for e in facts.external_data} == {
        ("deep", "../a"),
        ("const", "/etc/passwd"),
        ("sparse", "b"),
    }
    assert facts.has_subgraphs and facts.has_functions and facts.has_sparse
    assert ("", "Relu") in facts.operators


def test_split_messages_merge_like_protobuf() -> None:
    whole = linear_model().SerializeToString()
    weight = numpy_helper.from_array(np.zeros((6, 6), np.float32), "w")
    appended = onnx.ModelProto(graph=onnx.GraphProto(initializer=[weight]), ir_version=11)
    facts = lint_model(whole + appended.SerializeToString())
    assert facts.initializers == {"w"}
    assert facts.ir_version == 11
    assert facts.node_count == 2


def test_every_proper_prefix_is_refused_or_smaller() -> None:
    whole = linear_model().SerializeToString()
    full = lint_model(whole)
    for size in range(len(whole)):
        try:
            facts = lint_model(whole[:size])
        except BundleError:
            continue
        assert facts != full


@pytest.mark.parametrize(
    ("bytes_", "got"),
    [
        (b"", "no graph"),
        (b"\x00", "field number 0"),
        (b"\x3b", "wire type 3"),
        (b"\x3a\x05abc", "a field of 5 bytes where 3 are left"),
        (b"\x3a" + b"\xff" * 10, "more than 64 bits"),
        (b"\x3a" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
        (b"\x3a\xff", "cut off"),
        (integer_field(7, 3), "field 7 with wire type 0"),
        (bytes_field(7, bytes_field(1, bytes_field(4, b"\xff"))), "not UTF-8"),
        (bytes_field(7, bytes_field(1, bytes_field(4, b"a" * 70_000))), "a text of 70000 bytes"),
        (bytes_field(7, bytes_field(5, bytes_field(13, b"") * 2)), "twice"),
    ],
)
def test_malformed_bytes_are_named(bytes_: bytes, got: str) -> None:
    with pytest.raises(BundleError, match=got):
        lint_model(bytes_)


def test_endless_nesting_and_endless_fields_are_refused() -> None:
    graph = b""
    for _ in range(20):  # graph{node{attribute{g{...}}}}
        graph = bytes_field(1, bytes_field(5, bytes_field(6, graph)))
    with pytest.raises(BundleError, match="nested more than"):
        lint_model(bytes_field(7, graph))
    with pytest.raises(BundleError, match="more than 5 protobuf fields"):
        list(WireReader("m", 5).fields(memoryview(integer_field(1, 1) * 6)))
    huge_rank = bytes_field(5, bytes_field(1, varint(2**62) * 1000) + integer_field(14, 1))
    with pytest.raises(BundleError, match="external tensor"):
        lint_model(bytes_field(7, huge_rank))


@pytest.mark.parametrize("offset", ["-1", "1e3", "９", "", "9" * 19])
def test_external_offsets_are_plain_decimals(offset: str) -> None:
    tensor = external_tensor("w", [1], location="weights.bin", offset=offset)
    with pytest.raises(BundleError, match="external data of 'w'"):
        lint_model(linear_model([tensor]).SerializeToString())


SEEDS = [
    linear_model([external_tensor("w", [6, 6], location="weights.bin")]).SerializeToString(),
    branchy_model().SerializeToString(),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_models_raise_bundle_errors_only(data: st.DataObject) -> None:
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        stop = min(len(mutated), start + data.draw(st.integers(0, 3)))
        mutated[start:stop] = data.draw(st.binary(max_size=4))
    try:
        lint_model(bytes(mutated))
    except BundleError as error:
        assert error.where == "model"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_bundle_errors_only(noise: bytes) -> None:
    try:
        lint_model(bytes_field(7, noise))
    except BundleError:
        return
    assert lint_model(bytes_field(7, noise)).node_count >= 0


DTYPES = ["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0))
    )
)
def test_appended_initializers_read_back_in_onnx(array: np.ndarray[Any, Any]) -> None:
    tensor = NamedTensor("wé", array.dtype.name, array.shape, array)
    other = NamedTensor("k", "uint8", (2,), memoryview(b"ab"))
    skeleton = linear_model().SerializeToString()
    model = onnx.load_from_string(skeleton + b"".join(initializer_stream([tensor, other])))
    got = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(got["wé"], array)
    assert got["wé"].dtype == array.dtype
    assert got["k"].tolist() == [97, 98]
    assert len(model.graph.node) == 2


def test_exported_model_runs(tmp_path: Path) -> None:
    import onnxruntime as ort

    weight = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    # A transposed view: the rows must come out in order although memory holds columns.
    tensors = [NamedTensor("w", "float32", (6, 6), weight.T)]
    model = linear_model()
    del model.graph.output[1]
    (tmp_path / "skeleton.onnx").write_bytes(model.SerializeToString())
    export_model(tmp_path / "skeleton.onnx", tensors, tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    session = ort.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    x = np.ones((2, 6), np.float32)
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight.T @ weight, rtol=1e-5, atol=1e-6)


def test_wrong_size_is_our_bug() -> None:
    with pytest.raises(InternalError, match="expected 24 bytes of float32"):
        list(initializer_stream([NamedTensor("w", "float32", (2, 3), memoryview(b"1234"))]))


def test_models_above_the_limit_are_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_MODEL_BYTES", 1000)
    (tmp_path / "skeleton.onnx").write_bytes(linear_model().SerializeToString())
    big = NamedTensor("w", "uint8", (1000,), memoryview(bytes(1000)))
    with pytest.raises(SourceError, match="protobuf's limit"):
        export_model(tmp_path / "skeleton.onnx", [big], tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["skeleton.onnx"]


def test_a_full_disk_leaves_the_old_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "skeleton.onnx").write_bytes(linear_model().SerializeToString())
    (tmp_path / "out.onnx").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        export_model(tmp_path / "skeleton.onnx", [], tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"skeleton.onnx", "out.onnx"}


def test_too_little_space_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "skeleton.onnx").write_bytes(linear_model().SerializeToString())
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match="free bytes, got 10"):
        export_model(tmp_path / "skeleton.onnx", [], tmp_path / "out.onnx")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="0 bytes"):
        lint_model(tmp_path / "m.onnx")
