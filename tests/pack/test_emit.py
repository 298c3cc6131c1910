"""Files of graphs and weights, and what file-order execution relies on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.emit import (
    INLINE_BELOW_BYTES,
    WEIGHTS_NAME,
    check_emitted,
    emit_model,
    emit_weights,
    frozen_tensors,
)
from s2a_edge.spec.errors import InternalError, StorageError
from s2a_edge.spec.manifest import WeightEntry
from tests.pack.compiled import batch_of, compiled, parameters, run, session

FLOAT = ir.DataType.FLOAT
Make = Callable[[GraphBuilder], tuple[list[ir.Value], list[ir.Value]]]


def _in_order(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    x, acc = g.input("x", FLOAT, (2,)), g.input("acc.w", FLOAT, (2,))
    out = g.op("Add", acc, g.op("Neg", x))
    out.name = "acc_out.w"
    return [x, acc], [out]


def _late_reader(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    return inputs, [*outputs, g.op("Neg", inputs[1])]


def _reader_of_the_result(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    """Reading what was written is no conflict."""
    inputs, outputs = _in_order(g)
    return inputs, [*outputs, g.op("Neg", outputs[0])]


def _same_node_name(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    g.nodes[1].name = g.nodes[0].name
    return inputs, outputs


def _same_value_name(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    g.nodes[0].outputs[0].name = "x"
    return inputs, outputs


def _unnamed(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    g.nodes[0].name = ""
    return inputs, outputs


def _shape(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    return inputs, [*outputs, g.op("Shape", inputs[0])]


def _size(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    return inputs, [*outputs, g.op("Size", inputs[0])]


def _foreign(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    node = ir.Node("my.domain", "Thing", inputs, num_outputs=1, name="thing")
    node.outputs[0].name = "thing"
    g.adopt(node)
    return inputs, outputs


def _out_of_order(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
    inputs, outputs = _in_order(g)
    g.nodes.reverse()
    return inputs, outputs


def _checked(make: Make) -> None:
    g = GraphBuilder()
    inputs, outputs = make(g)
    check_emitted(model_of(inputs, outputs, g, "t"))


@pytest.mark.parametrize("make", [_in_order, _reader_of_the_result])
def test_what_may_be_emitted(make: Make) -> None:
    _checked(make)


@pytest.mark.parametrize(("make", "expected"), [
    (_late_reader, "before they are overwritten"),
    (_same_node_name, "a name of its own"),
    (_same_value_name, "a name of its own"),
    (_unnamed, "a name of its own"),
    (_shape, "file order"), (_size, "file order"), (_foreign, "file order"),
    (_out_of_order, "made before it"),
])
def test_what_must_not_be_emitted(make: Make, expected: str) -> None:
    with pytest.raises(InternalError, match=expected):
        _checked(make)


def test_a_module_named_like_an_output_confuses_nobody() -> None:
    """``acc_out.proj_out.bias``: only the first ``_out.`` marks an output."""
    def make(g: GraphBuilder) -> tuple[list[ir.Value], list[ir.Value]]:
        x, acc = g.input("x", FLOAT, (2,)), g.input("acc.proj_out.bias", FLOAT, (2,))
        out = g.op("Add", acc, g.op("Neg", x))
        out.name = "acc_out.proj_out.bias"
        return [x, acc], [out, g.op("Neg", acc)]

    with pytest.raises(InternalError, match="before they are overwritten"):
        _checked(make)


# Order of execution.

def _profiled(path: Path, feeds: dict[str, np.ndarray], folder: Path) -> list[str]:
    made = session(path, profile=folder / "profile")
    made.run(None, feeds)
    events = json.loads(Path(made.end_profiling()).read_text())
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    kernels.sort(key=lambda e: e["ts"])
    return [e["name"].removesuffix("_kernel_time") for e in kernels]


@pytest.mark.parametrize(("name", "options"), [
    ("tiny_vit", {"bits": 4, "attention": "recompute"}), ("tiny_vit", {"bits": 32}),
    ("tiny_vit", {"bits": 8, "attention": "recompute"}), ("tiny_resnet", {"bits": 4}),
])
def test_nodes_run_exactly_in_file_order(name: str, options: dict[str, Any], tmp_path: Path,
                                         ) -> None:
    made = compiled(name, **options)
    path = _written(made, tmp_path)["train"]
    feeds = {**batch_of(made, 4), **parameters(made)}
    expected = [n.name for n in onnx.load(path, load_external_data=False).graph.node]
    assert _profiled(path, feeds, tmp_path) == expected


# Files.

def _written(made: Compiled, folder: Path) -> dict[str, Path]:
    entries = {e.name: e for e in emit_weights(made.models, folder / WEIGHTS_NAME)}
    graphs = {"train": made.steps[4].model, "eval": made.evaluation, "infer": made.inference,
              "optimizer": made.optimizer}
    for name, model in graphs.items():
        emit_model(model, entries, folder / f"{name}.onnx", skeleton=name == "infer")
    return {name: folder / f"{name}.onnx" for name in graphs}


def _initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}


def _big(names: dict[str, onnx.TensorProto]) -> set[str]:
    return {n for n, t in names.items() if t.data_location == onnx.TensorProto.EXTERNAL}


def test_written_graphs_compute_what_the_models_compute(tmp_path: Path) -> None:
    made = compiled("tiny_vit", bits=4)
    files = _written(made, tmp_path)
    feeds = {**batch_of(made, 4), **parameters(made)}
    expected = run(made.steps[4].model, feeds)
    for name, value in run(files["train"], feeds).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for path in files.values():
        if path.stem != "infer":
            onnx.checker.check_model(str(path), full_check=True)


def test_frozen_weights_are_on_disk_once_and_in_no_graph(tmp_path: Path) -> None:
    made = compiled("tiny_vit", bits=4)
    files = _written(made, tmp_path)
    entries = emit_weights(made.models, tmp_path / "again.bin")
    weights = {n: v.const_value for n, v in made.evaluation.graph.initializers.items()
               if v.const_value is not None and v.const_value.nbytes >= INLINE_BELOW_BYTES}
    # The training graphs read the parts of what only the exported graph reads as a whole.
    wholes = {e.part_of for e in entries if e.part_of is not None}
    assert {e.name for e in entries} - wholes == set(weights) and len(entries) >= 9
    assert wholes == {"blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"}
    assert all(e.offset % 4096 == 0 for e in entries)
    content = (tmp_path / WEIGHTS_NAME).read_bytes()
    for entry in entries:
        if entry.name in wholes:
            continue
        array = weights[entry.name].numpy()
        assert content[entry.offset:entry.offset + entry.size_bytes] == array.tobytes()
        assert content.count(array.tobytes()) == 1
        for path in files.values():
            assert array.tobytes() not in path.read_bytes()
    for stem in ("train", "eval"):
        assert _big(_initializers(files[stem])) == set(weights)
        assert all(t.data_location == onnx.TensorProto.EXTERNAL or len(t.raw_data) < 2**21
                   for t in _initializers(files[stem]).values())
    assert not _big(_initializers(files["optimizer"]))


def test_the_skeleton_has_neither_weights_nor_parameters(tmp_path: Path) -> None:
    made = compiled("tiny_vit", bits=4)
    path = _written(made, tmp_path)["infer"]
    graph = onnx.load(path, load_external_data=False).graph
    assert [i.name for i in graph.input] == [made.backbone.data_inputs[0].name]
    assert not _big(_initializers(path))
    assert all(len(t.raw_data) < INLINE_BELOW_BYTES for t in graph.initializer)
    known = {i.name for i in graph.input} | set(_initializers(path))
    missing: set[str] = set()
    for node in graph.node:
        missing |= {n for n in node.input if n and n not in known}
        known |= set(node.output)
    used = emit_model(made.inference, {e.name: e for e in emit_weights(
        made.models, tmp_path / WEIGHTS_NAME)}, path, skeleton=True)
    assert missing == {*used, *(f"param.{t.name}" for t in made.trainables)}


def test_a_skeleton_completed_by_concatenation_is_the_model(tmp_path: Path) -> None:
    """Protobuf merges concatenated messages: what ``export`` does on the board."""
    made = compiled("tiny_resnet", bits=4)
    path = _written(made, tmp_path)["infer"]
    extra = onnx.ModelProto()
    for name, value in made.inference.graph.initializers.items():
        if name not in _initializers(path) and value.const_value is not None:
            extra.graph.initializer.append(onnx.numpy_helper.from_array(
                value.const_value.numpy(), name))
    for t in made.trainables:
        extra.graph.initializer.append(onnx.numpy_helper.from_array(t.initial, f"param.{t.name}"))
    path.write_bytes(path.read_bytes() + extra.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    image = {made.backbone.data_inputs[0].name or "": batch_of(made, 1)["image"]}
    start = {f"param.{t.name}": t.initial for t in made.trainables}
    expected = run(made.inference, {**image, **start})["logits"]
    np.testing.assert_array_equal(run(path, image)["logits"], expected)


def test_graphs_carry_nothing_that_a_runtime_does_not_need(tmp_path: Path) -> None:
    for path in _written(compiled("tiny_vit", bits=4), tmp_path).values():
        proto = onnx.load(path, load_external_data=False)
        assert not proto.graph.value_info
        assert not any(n.metadata_props or n.doc_string for n in proto.graph.node)
        names = [n.name for n in proto.graph.node]
        assert len(set(names)) == len(names) and proto.ir_version == 10


def test_emitting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    made = compiled("tiny_vit", bits=4)
    before = {n: v.const_value for n, v in made.evaluation.graph.initializers.items()}
    _written(made, tmp_path)
    assert {n: v.const_value for n, v in made.evaluation.graph.initializers.items()} == before


def _with_constant(array: np.ndarray, *, weight: bool) -> ir.Model:
    g = GraphBuilder()
    x = g.input("x", FLOAT, array.shape)
    frozen = g.initializer("const", array) if weight else g.constant(array)
    return model_of([x], [g.op("Add", x, frozen)], g, "t")


@pytest.mark.parametrize("size", [4, 4096])
def test_constants_of_two_graphs_with_one_name_do_not_collide(size: int, tmp_path: Path) -> None:
    models = [_with_constant(np.full(size, n, np.float32), weight=False) for n in (1, 2)]
    assert {next(iter(m.graph.initializers)) for m in models} == {"const"}
    assert emit_weights(models, tmp_path / WEIGHTS_NAME) == ()
    for number, model in enumerate(models):
        emit_model(model, {}, tmp_path / f"{number}.onnx")
        (out,) = run(tmp_path / f"{number}.onnx", {"x": np.zeros(size, np.float32)}).values()
        assert (out == number + 1).all()


def test_a_weight_that_differs_between_graphs_is_refused() -> None:
    models = [_with_constant(np.full(4096, n, np.float32), weight=True) for n in (1, 2)]
    with pytest.raises(InternalError, match="weight const"):
        frozen_tensors(models)
    same = [_with_constant(np.ones(4096, np.float32), weight=True) for _ in range(2)]
    assert list(frozen_tensors(same)) == ["const"]


def test_small_tensors_stay_inline(tmp_path: Path) -> None:
    model = _with_constant(np.ones(INLINE_BELOW_BYTES // 4 - 1, np.float32), weight=True)
    assert emit_weights([model], tmp_path / WEIGHTS_NAME) == ()
    assert emit_model(model, {}, tmp_path / "m.onnx") == ()


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    models = [_with_constant(np.ones(4096, np.float32), weight=True)]
    with pytest.raises(StorageError):
        emit_weights(models, tmp_path / "missing" / WEIGHTS_NAME)
    entry = WeightEntry("const", "float32", (4096,), 0, 4 * 4096)
    with pytest.raises(StorageError):
        emit_model(models[0], {"const": entry}, tmp_path / "missing" / "m.onnx")
