"""Graphs that decode weights compute what graphs with the decoded weights compute."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from s2a_edge.native import find_library
from s2a_edge.pack.adapt import Adapted, adapt
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.differentiate import differentiate
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.forward_graphs import forward_model
from s2a_edge.pack.frozen.decode_nodes import FrozenCoder
from s2a_edge.pack.graph import CODED_KEY, shape_of
from s2a_edge.pack.half.convert import half_model
from s2a_edge.pack.half.formats import FP16, Half
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.precision import Precision
from s2a_edge.pack.schedule import schedule
from s2a_edge.pack.slice_products import read_transposed, slice_products
from s2a_edge.spec.frozen_weights import FrozenStorage, FrozenWeights, decode_weight
from tests.native.test_kernels import session
from tests.pack.compiled import run

_WIDTH, _TOKENS, _BATCH, _CLASSES = 128, 5, 2, 3
_STORAGES: tuple[FrozenStorage, ...] = ("fp16", "int8", "int4")
_TOLERANCE = 2e-5
Body = Callable[[GraphBuilder, ir.Value], ir.Value]


def _linear(g: GraphBuilder, x: ir.Value, outputs: int, name: str) -> ir.Value:
    rng = np.random.default_rng(len(name) + outputs)
    weight = rng.standard_normal((shape_of(x)[-1], outputs)).astype(np.float32) / 8
    g.module = name
    product = g.op("MatMul", x, g.initializer(f"{name}.weight", weight))
    return g.op("Add", g.initializer(f"{name}.bias", np.ones(outputs, np.float32)), product)


def _tokens(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """A linear layer, an MLP that is sliced, a fused projection that is split."""
    x = _linear(g, x, _WIDTH, "stem")
    x = _linear(g, g.op("Gelu", _linear(g, x, 1024, "fc1")), _WIDTH, "fc2")
    a, b = g.multi("Split", [_linear(g, x, 2 * _WIDTH, "gated"), g.constant([_WIDTH, _WIDTH])], 2,
                   axis=2)
    return g.op("ReduceMean", g.op("Mul", a, g.op("Sigmoid", b)), g.constant([1]), keepdims=0)


def _image(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Convolutions: one by one, three by three, and a grouped one."""
    rng = np.random.default_rng(1)
    x = g.op("Reshape", x, g.constant([_BATCH, 1, _TOKENS, _WIDTH]))
    x = g.op("Expand", x, g.constant([_BATCH, _WIDTH, _TOKENS, _WIDTH]))
    for name, shape, pad, group in (("point", (_WIDTH, _WIDTH, 1, 1), 0, 1),
                                    ("deep", (_WIDTH, 1, 3, 3), 1, _WIDTH),
                                    ("window", (32, _WIDTH, 3, 3), 1, 1)):
        g.module = name
        kernel = rng.standard_normal(shape).astype(np.float32) / 32
        x = g.op("Conv", x, g.initializer(f"{name}.weight", kernel),
                 g.initializer(f"{name}.bias", np.zeros(shape[0], np.float32)), pads=[pad] * 4,
                 group=group)
        x = g.op("Relu", x)
    return g.op("ReduceMean", x, g.constant([2, 3]), keepdims=0)


def _adapted(body: Body) -> Adapted:
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, (_BATCH, _TOKENS, _WIDTH))
    features = body(g, x)
    return adapt(model_of([x], [features], g, "backbone"), (x,), features, classes=_CLASSES)


def _feeds(made: Adapted) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    feeds = {"x": rng.standard_normal((_BATCH, _TOKENS, _WIDTH)).astype(np.float32),
             "target": np.eye(_CLASSES, dtype=np.float32)[:_BATCH],
             "weight": np.full(_BATCH, 0.5, np.float32)}
    for t in made.trainables:
        feeds[f"param.{t.name}"] = t.initial
        feeds[f"acc.{t.name}"] = np.zeros_like(t.initial)
    return feeds


class _Case:
    """All graphs of a backbone, with and without codes."""

    def __init__(self, body: Body, storage: FrozenStorage, half: Half | None = None) -> None:
        whole = _adapted(body)
        self.inference = forward_model(whole, "infer")
        sliced = slice_products(whole)
        self.adapted = sliced.adapted
        read_transposed(self.inference, sliced.transposed)
        self.evaluation = forward_model(self.adapted, "eval")
        self.coder = FrozenCoder(storage, self.evaluation, self.inference, half)
        if half is not None:
            self.evaluation = half_model(self.evaluation, half)
        self.coder.apply(self.evaluation)
        self.step = self._train()
        self.coder.apply(self.step)
        self.frozen = FrozenWeights(storage, 0.0, self.coder.record())

    def _train(self) -> ir.Model:
        model = differentiate(self.adapted, Precision(4, "store")).model
        schedule(model)
        return model

    def decoded(self) -> dict[str, np.ndarray]:
        """Every coded weight in float32, as export computes it."""
        arrays = {n: v.const_value.numpy() for n, v in self.evaluation.graph.initializers.items()
                  if v.const_value is not None and CODED_KEY in v.metadata_props}
        return {name: decode_weight(self.frozen, name, arrays) for name in self.coder.wholes}

    def with_decoded(self, model: ir.Model) -> ir.Model:
        """``model``, not coded, with the decoded weights in place of its own."""
        decoded = self.decoded()
        runs = {r.codes.removesuffix(".codes"): r for r in self.frozen.coded}
        for name, value in model.graph.initializers.items():
            run_ = runs.get(name)
            array = decoded.get(name)
            if run_ is not None:
                array = decoded[run_.of][run_.first_row : run_.first_row + run_.shape[0]]
            if array is not None:
                value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
        return model


@pytest.fixture(params=[_tokens, _image], ids=["tokens", "image"], scope="module")
def body(request: pytest.FixtureRequest) -> Body:
    made: Body = request.param
    return made


@pytest.mark.parametrize("storage", _STORAGES)
def test_a_step_is_that_with_the_decoded_weights(body: Body, storage: FrozenStorage) -> None:
    case = _Case(body, storage)
    check_emitted(case.step)
    feeds = _feeds(case.adapted)
    expected = run(case.with_decoded(case._train()), feeds)
    for name, got in run(case.step, feeds).items():
        scale = np.abs(expected[name]).max() + 1e-12
        assert np.abs(got - expected[name]).max() <= _TOLERANCE * scale, name


@pytest.mark.parametrize("storage", _STORAGES)
def test_export_and_evaluation_use_the_very_same_weights(body: Body, storage: FrozenStorage,
                                                         ) -> None:
    case = _Case(body, storage)
    feeds = _feeds(case.adapted)
    wanted = {v.name for v in case.evaluation.graph.inputs}
    feeds = {name: array for name, array in feeds.items() if name in wanted}
    exported = run(case.with_decoded(case.inference), feeds)["logits"]
    evaluated = run(case.evaluation, feeds)["logits"]
    assert np.abs(exported - evaluated).max() <= _TOLERANCE * np.abs(exported).max()
    plain = forward_model(case.adapted, "plain")
    assert np.abs(run(plain, feeds)["logits"] - evaluated).max() > 0  # it is coded


@pytest.mark.parametrize("storage", _STORAGES)
def test_the_runtime_decodes_bit_for_bit(storage: FrozenStorage) -> None:
    case = _Case(_tokens, storage)
    decoded = case.decoded()
    for run_ in case.frozen.coded:
        g = GraphBuilder()
        value = case.coder._decoded(g, run_.codes.removesuffix(".codes"))
        x = g.input("x", ir.DataType.FLOAT, (1,))
        out = g.op("Mul", value, x)
        got = run(model_of([x], [out], g, "decode"), {"x": np.ones(1, np.float32)})[out.name or ""]
        rows = slice(run_.first_row, run_.first_row + run_.shape[0])
        np.testing.assert_array_equal(got, decoded[run_.of][rows])


@pytest.mark.skipif(find_library() is None, reason="no C compiler")
def test_a_kernel_in_c_decodes_the_same_in_one_node(body: Body) -> None:
    case = _Case(body, "int4")
    native = case._train()
    case.coder.apply(native, native=True)
    check_emitted(native)
    decoders = [n for n in native.graph if n.op_type == "UnpackHalves"]
    halves = [n for n in case.step.graph if n.op_type == "BitwiseAnd"]
    assert len(native.graph) == len(case.step.graph) - 3 * len(decoders)
    assert len(decoders) == len(halves) > 0
    feeds = _feeds(case.adapted)
    expected = run(case.step, feeds)
    for name, got in run(session(ir.to_proto(native)), feeds).items():
        scale = np.abs(expected[name]).max() + 1e-12
        assert np.abs(got - expected[name]).max() <= _TOLERANCE * scale, name


def test_the_wide_and_sliced_are_coded_and_the_grouped_and_small_are_not() -> None:
    assert _Case(_tokens, "int4").coder.wholes == {
        f"{name}.weight" for name in ("stem", "fc1", "fc2", "gated")}
    assert _Case(_image, "int4").coder.wholes == {"point.weight", "window.weight"}
    runs = [r for r in _Case(_tokens, "int4").frozen.coded if r.of == "fc1.weight"]
    assert sorted(r.first_row for r in runs) == [0, 512]  # rows of the stored, transposed matrix


@pytest.mark.parametrize("storage", _STORAGES)
def test_no_two_decoded_weights_are_alive_at_once(body: Body, storage: FrozenStorage) -> None:
    case = _Case(body, storage)
    for model in (case.step, case.evaluation):
        result = plan_memory(model)
        homes = [b for b in result.traffic.buffers
                 if ".weight" in b.name and ".halves" not in b.name and ".factors" not in b.name]
        assert len(homes) >= len(case.frozen.coded)
        for earlier, later in itertools.pairwise(homes):
            assert earlier.end <= later.start, (earlier, later)
        # Forward and backward each decode for themselves, and nothing holds on to it.
        assert all(b.end - b.start <= 3 for b in homes)


def test_every_use_has_a_decoder_of_its_own() -> None:
    case = _Case(_tokens, "int8")
    decoders = [n for n in case.step.graph if n.op_type == "DequantizeLinear"
                and CODED_KEY in (n.inputs[0].metadata_props if n.inputs[0] else {})]
    assert all(len(n.outputs[0].uses()) == 1 for n in decoders)
    # Forward and backward, but for the stem: only its bias trains, nothing below it does.
    assert len(decoders) == 2 * len(case.frozen.coded) - 1


def test_float32_changes_nothing(tmp_path: Path) -> None:
    case = _Case(_tokens, "fp32")
    assert not case.coder and case.frozen.coded == ()
    assert all(n.op_type != "BitwiseAnd" for n in case.step.graph)


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("body", [_tokens, _image])
def test_graphs_in_float16_read_or_decode_float16(body: Body, storage: FrozenStorage) -> None:
    case = _Case(body, storage, FP16)
    codes = {name for name in case.evaluation.graph.initializers if name.endswith(".codes")}
    assert codes
    for name in codes:
        value = case.evaluation.graph.initializers[name]
        readers = {use.node.op_type for use in value.uses()}
        assert value.dtype in (ir.DataType.FLOAT16, ir.DataType.INT8)
        assert ("Cast" in readers) == (value.dtype == ir.DataType.INT8), name
    kinds = {run_.codec for run_ in case.frozen.coded}
    assert ("int8" if storage == "int8" else "float16") in kinds
    for node in case.evaluation.graph:
        assert node.op_type not in ("DequantizeLinear", "BitwiseAnd")


@pytest.mark.parametrize("body", [_tokens, _image])
def test_export_has_the_weights_that_float16_graphs_compute_with(body: Body) -> None:
    case = _Case(body, "int8", FP16)
    decoded = case.decoded()
    for run_ in case.frozen.coded:
        g = GraphBuilder()
        value = case.coder._decoded(g, run_.codes.removesuffix(".codes"), ir.DataType.FLOAT16)
        out = g.op("Identity", value)
        model = model_of([], [out], g, "decode")
        got = run(model, {})[out.name or ""]
        rows = slice(run_.first_row, run_.first_row + run_.shape[0])
        np.testing.assert_array_equal(got.astype(np.float32), decoded[run_.of][rows])
