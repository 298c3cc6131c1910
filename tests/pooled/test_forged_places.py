"""Bundles whose graphs name other places in the pool than were planned, with matching checksums.

Whoever can write a bundle can write its manifest and its checksums as well. The runtime writes
what a graph computes wherever the names of its outputs say, so `check` and `train` refuse such a
bundle, in one line, before they load it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from s2a_edge.run.pool import Pool
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BundleError, S2AError
from s2a_edge.spec.pool_ports import pool_offset, pool_port
from tests.run.toy_bundle import write_sums

GRAPH = "train_b4.onnx"
CANARY = 0xA5
Change = Callable[[onnx.GraphProto], None]


def size_bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    item = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return int(np.prod([dim.dim_value for dim in tensor.shape.dim])) * item


def places(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Outputs in the pool, the one that ends last last."""
    found = [value for value in graph.output if pool_offset(value.name) is not None]
    return sorted(found, key=lambda v: ((pool_offset(v.name) or 0) + size_bytes(v), v.name))


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Another name for a value, wherever it stands."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*graph.output, *graph.value_info):
        value.name = new if value.name == old else value.name


def put(graph: onnx.GraphProto, name: str, offset: int) -> None:
    rename(graph, name, pool_port(offset, 99_999))


def moved(offset: int) -> Change:
    """A value lies there instead."""
    return lambda graph: put(graph, places(graph)[-1].name, offset)


def past_the_end(graph: onnx.GraphProto) -> None:
    """By one line of the cache."""
    last = places(graph)[-1]
    put(graph, last.name, (pool_offset(last.name) or 0) + 64)


def longer(graph: onnx.GraphProto) -> None:
    places(graph)[-1].type.tensor_type.shape.dim[0].dim_value += 1


def wider(graph: onnx.GraphProto) -> None:
    places(graph)[-1].type.tensor_type.elem_type = onnx.TensorProto.INT64


def over_an_operand(graph: onnx.GraphProto) -> None:
    """A convolution writes over what it reads; over indices a kernel would leave the pool."""
    inside = {value.name for value in places(graph)}
    node = next(n for n in graph.node
                if n.op_type == "Conv" and {n.input[0], n.output[0]} <= inside)
    put(graph, node.output[0], pool_offset(node.input[0]) or 0)


def over_what_is_read_later(graph: onnx.GraphProto) -> None:
    inside = {value.name for value in places(graph)}
    last_read = {name: at for at, node in enumerate(graph.node) for name in node.input}
    written = {name: at for at, node in enumerate(graph.node) for name in node.output}
    one, other = next((one, other) for one in inside for other in inside
                      if written[one] < written[other] < last_read[one])
    put(graph, other, pool_offset(one) or 0)


def over_what_a_view_reads_later(graph: onnx.GraphProto) -> None:
    """The value itself has no reader left, but the view of it that was taken before has."""
    inside = {value.name for value in places(graph)}
    last_read = {name: at for at, node in enumerate(graph.node) for name in node.input}
    written = {name: at for at, node in enumerate(graph.node) for name in node.output}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] in inside:
            view, value = node.output[0], node.input[0]
            for other in inside - {value}:
                if last_read[value] < written[other] < last_read.get(view, -1):
                    return put(graph, other, pool_offset(value) or 0)
    pytest.fail("no such view")


def nobody_writes(graph: onnx.GraphProto) -> None:
    graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(pool_port(0, 99_999), 1, [4]))


def out_of_order(graph: onnx.GraphProto) -> None:
    """The runtime would sort them in its own way, and lifetimes would be others."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(reversed(nodes))


FORGED: dict[str, Change] = {
    "past the end": past_the_end, "far away": moved(2**40), "of 15 digits": moved(64 * (10**13)),
    "more digits than a place has": moved(64 * 10**15), "unaligned": moved(4), "longer": longer,
    "wider": wider, "over an operand": over_an_operand,
    "over what is read later": over_what_is_read_later,
    "over what a view reads later": over_what_a_view_reads_later, "unwritten": nobody_writes,
    "out of order": out_of_order,
}  # fmt: skip


def forge(pooled: Path, folder: Path, change: Change, file: str = GRAPH) -> Path:
    """The bundle with one graph changed, and checksums that match."""
    shutil.copytree(pooled, folder)
    model = onnx.load(folder / file, load_external_data=False)
    change(model.graph)
    (folder / file).write_bytes(model.SerializeToString())
    write_sums(folder)
    return folder


def s2a(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2a_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], *codes: int) -> None:
    assert done.returncode in codes, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", FORGED)
def test_forged_places_are_refused(name: str, pooled: Path, tmp_path: Path) -> None:
    Bundle.open(pooled).close()
    with pytest.raises(BundleError) as error:
        Bundle.open(forge(pooled, tmp_path / "b", FORGED[name]))
    assert error.value.where == GRAPH


@pytest.mark.parametrize("file", ["train_b1.onnx", "train_b4.native.onnx", "eval.onnx"])
def test_every_graph_is_looked_at(file: str, pooled: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as error:
        Bundle.open(forge(pooled, tmp_path / "b", past_the_end, file))
    assert error.value.where == file


@pytest.mark.parametrize("name", ["past the end", "over an operand"])
def test_check_and_train_say_so_in_one_line(
    name: str, pooled: Path, photos: Path, tmp_path: Path
) -> None:
    bundle = forge(pooled, tmp_path / "b", FORGED[name])
    assert_one_line(s2a("check", bundle, "--budget", "2GiB"), 1)
    out = tmp_path / "run"
    assert_one_line(s2a("train", bundle, "--data", photos, "--epochs", 1, "--out", out), 1)
    assert not out.exists()


def test_a_manifest_that_plans_the_forged_place_asks_for_its_memory(
    pooled: Path, photos: Path, tmp_path: Path
) -> None:
    """The budget refuses it, or the system does; nothing is written."""
    bundle = forge(pooled, tmp_path / "b", moved(2**46))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for graph in manifest["graphs"]["train"]:
        for form in (graph, graph["native"]):
            form["plan"]["pool_bytes"] = 2**46 + 2**20
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    write_sums(bundle)
    assert_one_line(s2a("check", bundle, "--budget", "2GiB"), 1)  # more pool than memory
    for graph in manifest["graphs"]["train"]:
        for form in (graph, graph["native"]):
            for key in ("arena_bytes", "whole_image_arena_bytes"):
                form["plan"][key] += 2**46 + 2**20
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    write_sums(bundle)
    assert_one_line(s2a("check", bundle, "--budget", "2GiB"), 3)
    train = ("train", bundle, "--data", photos, "--epochs", 1, "--out", tmp_path / "run")
    assert_one_line(s2a(*train, "--budget", "2GiB"), 3)


def shorter(graph: onnx.GraphProto) -> None:
    """Its declared size is half of what its node computes; where it lies, half would stick out."""
    last = places(graph)[-1]
    last.type.tensor_type.shape.dim[0].dim_value //= 2
    for value in graph.value_info:
        if value.name == last.name:
            value.CopyFrom(last)
    put(graph, last.name, (pool_offset(last.name) or 0) + size_bytes(last) // 64 * 64)


def of_unknown_length(graph: onnx.GraphProto) -> None:
    """Eight bytes at the pool's end by its name; the data says how many are computed."""
    last = places(graph)[-1]
    name = pool_port(((pool_offset(last.name) or 0) + size_bytes(last) - 64) // 64 * 64, 99_999)
    graph.node.append(onnx.helper.make_node("Reshape", ["image", "flat"], ["long"], "flatten"))
    graph.node.append(onnx.helper.make_node("NonZero", ["long"], [name], "count"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "flat"))
    graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1, 1]))


@pytest.mark.parametrize("change", [shorter, of_unknown_length])
def test_a_value_that_is_larger_than_it_says_is_not_written(
    change: Change, pooled: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime finds out when it loads the graph, or when the node asks for its output."""
    made: list[tuple[np.ndarray, int]] = []

    def guarded(pool: Pool) -> np.ndarray:
        made.append((np.full(pool.size_bytes + 2**20, CANARY, np.uint8), pool.size_bytes))
        return made[-1][0]

    monkeypatch.setattr(Pool, "_on_host", guarded)
    bundle = forge(pooled, tmp_path / "b", change)
    with pytest.raises(S2AError):
        Trainer(bundle, seed=0, kernels="portable").fit(
            photos, out=tmp_path / "run", epochs=1, lr=0.01)
    assert bool(made) == (change is of_unknown_length)
    assert all((memory[inside:] == CANARY).all() for memory, inside in made)
