from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from s2a_edge.run import engine as engine_module
from s2a_edge.run.device_tensor import DeviceTensor
from s2a_edge.run.engine import Engine
from s2a_edge.run.inline_tensors import inline_tensors
from s2a_edge.run.memory_check import SESSION_SLACK_BYTES
from s2a_edge.spec.errors import BundleError
from tests.run.toy_bundle import ARENA_BYTES, toy_samples

TABLE = np.arange(65_536, dtype=np.float32).reshape(256, 256)
KEPT: dict[str, npt.NDArray[Any]] = {
    "table": TABLE,
    "scalar": np.asarray(2.5, np.float32),
    "shape": np.asarray([3, -1], np.int64),
    "mask": np.asarray([True, False]),
    "half": np.asarray([[0.5, 1.5]], np.float16),
    "byte": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
}


def _write(path: Path, *tensors: onnx.TensorProto) -> Path:
    """A graph x [256, 256] -> x + table, with further initializers that nobody reads."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, TABLE.shape) for n in "xy")
    nodes = [helper.make_node("Add", ["x", "table"], ["y"], name="add")]
    graph = helper.make_graph(nodes, "g", [x], [y], list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_raw_tensors_are_read_with_shape_and_type(tmp_path: Path) -> None:
    made = [numpy_helper.from_array(array, name) for name, array in KEPT.items()]
    found = inline_tensors(_write(tmp_path / "g.onnx", *made))
    assert found.keys() == KEPT.keys()
    for name, array in KEPT.items():
        assert found[name].dtype == array.dtype
        assert found[name].flags.aligned
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_external_four_bit_and_listed_tensors_are_left_to_the_runtime(tmp_path: Path) -> None:
    external = numpy_helper.from_array(np.ones(4, np.float32), "outside")
    external.ClearField("raw_data")
    external.data_location = TensorProto.EXTERNAL
    four_bit = helper.make_tensor("four", TensorProto.UINT4, [2], b"\x21", raw=True)
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [2], [1.0, 2.0])
    empty = numpy_helper.from_array(np.zeros((0, 2), np.float32), "empty")
    table = numpy_helper.from_array(TABLE, "table")
    path = _write(tmp_path / "g.onnx", external, four_bit, listed, empty, table)
    assert list(inline_tensors(path)) == ["table"]


def test_too_few_bytes_are_refused(tmp_path: Path) -> None:
    short = numpy_helper.from_array(np.ones(4, np.float32), "short")
    short.dims[0] = 5
    with pytest.raises(BundleError, match=r"g.onnx: expected float32\[5\], got 16 bytes"):
        inline_tensors(_write(tmp_path / "g.onnx", short))


@pytest.mark.parametrize("content", [None, b""])
def test_no_file_and_an_empty_one_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "g.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"g.onnx: expected a graph file"):
        inline_tensors(path)


@given(st.binary(min_size=1, max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "g.onnx")
        path.write_bytes(data)
        try:
            inline_tensors(path)
        except BundleError as error:
            assert error.where == path.name


def _outputs(toy: Path) -> dict[str, np.ndarray]:
    """What the training graph of a toy gives, run as the engine loads it now."""
    loaded = Engine(arena_limit_bytes=ARENA_BYTES + SESSION_SLACK_BYTES).load(toy / "train_b2.onnx")
    x, labels = toy_samples(2)
    values = {"x": x, "target": np.eye(3, dtype=np.float32)[labels], "weight": np.full(2, 0.5)}
    inputs = {n: DeviceTensor(p.shape, p.dtype) for n, p in loaded.inputs.items()}
    for name, tensor in inputs.items():
        tensor.write(values.get(name, 0.01))
    outputs = {n: DeviceTensor(p.shape, p.dtype) for n, p in loaded.outputs.items()}
    loaded.bind(inputs, outputs)
    loaded.run()
    return {name: tensor.read() for name, tensor in outputs.items()}


def test_constants_from_outside_change_no_result(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for version in ("1.0", "99.0"):  # every onnxruntime is newer than the one, older than the other
        monkeypatch.setattr(engine_module, "CONSTANTS_OUTSIDE_ARENA", version)
        results.append(_outputs(toy))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)
