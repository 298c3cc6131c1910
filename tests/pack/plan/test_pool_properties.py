"""Pools of random graphs: nothing is overwritten while it, or a view of it, is still to be read.

Three judges that share no code: the packing host's replay (``verify``), the board's
(``spec.pool_places``), and the runtime itself, which computes the same with and without places.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.graph import dtype_of, nbytes_of, shape_of
from s2a_edge.pack.plan import pool as pools
from s2a_edge.pack.plan.kernel_memory import alias_source
from s2a_edge.pack.plan.pool import pooled_values, use_pool
from s2a_edge.pack.plan.verify import _replay
from s2a_edge.pack.plan.workspaces import Runtime
from s2a_edge.spec.errors import BundleError, InternalError
from s2a_edge.spec.onnx_nodes import read_nodes
from s2a_edge.spec.pool_places import Place, check_lifetimes
from s2a_edge.spec.pool_ports import POOL_ALIGNMENT_BYTES, pool_port
from tests.pack.plan.random_graphs import random_graph

RUNTIME = Runtime(1, (1, 32))
SEEDS = st.integers(0, 2**16)


@pytest.fixture(autouse=True, scope="module")
def small_values_have_places() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "_LEAST_BYTES", 64)
        patch.setattr(pools, "_LEAST_SHARE", 0)
        yield


def plain(seed: int, operations: int = 25) -> ir.Model:
    model = random_graph(seed, operations)
    RemoveUnusedNodesPass()(model)
    return model


def pooled(seed: int, operations: int = 25) -> ir.Model:
    model = plain(seed, operations)
    use_pool(model, RUNTIME)
    return model


def board_refuses(model: ir.Model, folder: Path) -> bool:
    ir.save(model, folder / "graph.onnx")
    places = {v.name or "": Place(at, at + nbytes_of(v)) for v, at in pooled_values(model).items()}
    given_ = {v.name or "" for v in (*model.graph.inputs, *model.graph.initializers.values())}
    try:
        check_lifetimes("graph.onnx", places, read_nodes(folder / "graph.onnx"), given_,
                        [v.name or "" for v in model.graph.outputs])
    except BundleError:
        return True
    return False


def host_refuses(model: ir.Model) -> bool:
    try:
        list(_replay(model, bound_outputs=True, runtime=RUNTIME))
    except InternalError:
        return True
    return False


def unread(model: ir.Model) -> bool:
    return not all(value.uses() for value in pooled_values(model))


def computed(model: ir.Model) -> dict[str, np.ndarray]:
    """Its outputs, those with a place bound to memory that held garbage."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_reuse = False
    # Else a DequantizeLinear with several readers is repeated, and runs where no plan has it.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    places = {v.name or "": (at, v) for v, at in pooled_values(model).items()}
    end = max((at + nbytes_of(v) for at, v in places.values()), default=0)
    memory = np.full(end + POOL_ALIGNMENT_BYTES, 0xA5, np.uint8)
    start = -memory.ctypes.data % POOL_ALIGNMENT_BYTES + memory.ctypes.data
    binding, draw = session.io_binding(), np.random.default_rng(0)
    feeds = {v.name or "": draw.standard_normal(shape_of(v)).astype(np.float32)
             for v in model.graph.inputs}
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    rest = [o.name for o in session.get_outputs() if o.name not in places]
    for name in rest:
        binding.bind_output(name)
    for name, (at, value) in places.items():
        binding.bind_output(name, "cpu", 0, dtype_of(value).numpy(), shape_of(value), start + at)
    session.run_with_iobinding(binding)
    outputs = dict(zip([o.name for o in session.get_outputs()], binding.get_outputs(), strict=True))
    return {name: outputs[name].numpy() for name in rest}


@given(SEEDS)
@settings(max_examples=60)
def test_host_board_and_runtime_agree_on_planned_places(
        tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    model = pooled(seed)
    assert not host_refuses(model)
    assert not board_refuses(model, tmp_path_factory.mktemp("graph"))
    expected, placed = computed(plain(seed)), computed(model)
    assert expected.keys() == placed.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, placed[name], err_msg=name)


@given(SEEDS, st.integers(0, 2**16), st.integers(0, 2**16), st.sampled_from((0, 0, 64, 1024)))
@settings(max_examples=150)
def test_host_and_board_refuse_the_same_places(
        tmp_path_factory: pytest.TempPathFactory, seed: int, one: int, other: int, apart: int,
        ) -> None:
    """One value of a sound pool is moved to where another lies, or near it."""
    model = pooled(seed, 15)
    values = list(pooled_values(model))
    assume(len(values) > 1)
    target = pooled_values(model)[values[one % len(values)]]
    values[other % len(values)].name = pool_port(target + apart, 99_999)
    refused = host_refuses(model), board_refuses(model, tmp_path_factory.mktemp("graph"))
    # A value that nobody reads is alive for good to the host, and never to the board.
    assert refused[0] >= refused[1] if unread(model) else refused[0] == refused[1]


@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
@example(1, 1, False)
def test_a_view_keeps_the_place_of_its_source(views: int, between: int, over: bool) -> None:
    """x -> a -> its views, then other values, then a reader of the last view."""
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (4, 64))
    a = g.op("Add", x, x)
    view = a
    for number in range(views):
        view = g.op("Reshape", view, g.constant([64, 4] if number % 2 else [2, 128]))
    others = [g.op("Mul", x, x) for _ in range(between)]
    last = g.op("Neg", view) if over else g.op("Softmax", g.op("Transpose", view), axis=1)
    y = g.op("ReduceSum", last)
    for value in others:
        y = g.op("Add", y, g.op("ReduceSum", value))
    model = model_of([x], [y], g, "views")
    use_pool(model, RUNTIME)
    places = {v: Place(at, at + nbytes_of(v)) for v, at in pooled_values(model).items()}
    assert a in places and alias_source(view.producer() or model.graph[0]) is not None
    assert view not in places
    assert all(not places[a].meets(places[value]) for value in others)
    if over:  # the last reader of the view may take the place over
        assert places.get(last) == places[a]
