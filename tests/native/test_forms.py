"""The two forms of a training step: same numbers, and either can be asked for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import s2a_edge.native
from s2a_edge.cli import app
from s2a_edge.native import NATIVE_DOMAIN, find_library, library
from s2a_edge.pack.build import pack_captured
from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.codecs.codec import Codec
from s2a_edge.pack.codecs.derivative import DerivativeCodec
from s2a_edge.pack.codecs.group import AsymmetricCodec, SymmetricCodec
from s2a_edge.pack.codecs.probability import ProbabilityCodec
from s2a_edge.pack.codecs.row import RowCodec
from s2a_edge.pack.compile import native_step
from s2a_edge.pack.emit import emit_model
from s2a_edge.pack.fuse_native import fuse_native
from s2a_edge.pack.graph import nbytes_of
from s2a_edge.pack.native_ops import NATIVE_OPERATORS
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.pack.rehearse import run_graph
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import DeviceError
from tests.native.test_kernels import session
from tests.pack.compiled import LABELS, batch_of, captured, compiled, parameters, run

Attention = Literal["store", "recompute"]
pytestmark = pytest.mark.skipif(find_library() is None, reason="no C compiler")


def test_every_operator_has_a_kernel() -> None:
    source = (Path(s2a_edge.native.__file__).parent / "ops.c").read_text()
    assert set(re.findall(r'\{OP, "(\w+)"', source)) == NATIVE_OPERATORS


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph if node.domain == NATIVE_DOMAIN}


@pytest.mark.parametrize(("name", "bits", "expected"), [
    ("tiny_vit", 4, {"GeluWords", "UnpackTimes", "PackWords", "UnpackWords", "SoftmaxGradient",
                     "LayerNorm", "LayerNormGradient"}),
    ("tiny_vit", 8, {"SoftmaxGradient", "LayerNorm", "LayerNormGradient"}),
    ("tiny_vit", 32, {"SoftmaxGradient", "LayerNorm", "LayerNormGradient"}),
])
@pytest.mark.parametrize("attention", ["store", "recompute"])
def test_both_forms_give_the_same_gradients(name: str, bits: int, expected: set[str],
                                            attention: Attention) -> None:
    made = compiled(name, bits=bits, attention=attention)
    options = PackOptions(labels=LABELS, bits=bits, attention=attention, micro_batches=(4,),
                          effective_batch=4)
    native = native_step(made, 4, options)
    assert native is not None and expected <= operators(native.model)
    assert not operators(made.steps[4].model)
    assert len(native.model.graph) < len(made.steps[4].model.graph)
    assert [s.stored_bytes for s in native.saved] == [s.stored_bytes for s in made.steps[4].saved]
    feeds = {**batch_of(made, 4), **parameters(made)}
    portable = run(made.steps[4].model, feeds)
    for name_, value in run(session(ir.to_proto(native.model)), feeds).items():
        # A code at a boundary may fall to the other side; none is seen to.
        scale = max(float(np.abs(portable[name_]).max()), 1e-6)
        np.testing.assert_allclose(value / scale, portable[name_] / scale, atol=2e-5)


@pytest.mark.parametrize(("codec", "shape", "expected"), [
    (SymmetricCodec(4), (2, 40, 8), {"AbsoluteMaxima", "PackColumns", "UnpackColumns"}),
    (SymmetricCodec(4), (2, 40, 6), {"PackWords", "UnpackWords"}),
    (SymmetricCodec(4), (3, 7), set()),
    (AsymmetricCodec(4), (2, 40, 8), {"PackWords", "UnpackWords"}),
    (RowCodec(), (2, 3, 40, 16), {"QuantizeRows", "DequantizeRows"}),
    (ProbabilityCodec(4), (2, 3, 40, 40), {"UnpackWords"}),
    (DerivativeCodec("gelu", 4), (2, 40, 8), {"PackWords", "UnpackWords"}),
    (DerivativeCodec("gelu", 2), (2, 40, 8), set()),
])
def test_codecs_store_and_give_back_the_same(codec: Codec, shape: tuple[int, ...],
                                             expected: set[str]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x = np.abs(x) if isinstance(codec, ProbabilityCodec) else x
    decoded: list[np.ndarray[Any, Any]] = []
    for native in (False, True):
        g = GraphBuilder(native=native)
        operand = g.input("x", ir.DataType.FLOAT, shape)
        stored = codec.encode(g, operand)
        assert sum(nbytes_of(part) for part in stored) == codec.stored_bytes(shape)
        model = model_of([operand], [codec.decode(g, stored, shape)], g, "codec")
        assert operators(model) == (expected if native else set())
        decoded += run(session(ir.to_proto(model)), {"x": x}).values()
    np.testing.assert_array_equal(decoded[0], decoded[1])


def test_what_has_no_such_node_has_one_form() -> None:
    made = compiled("tiny_resnet", bits=32)
    options = PackOptions(labels=LABELS, bits=32, micro_batches=(4,), effective_batch=4)
    assert native_step(made, 4, options) is None


def test_the_plan_knows_the_nodes() -> None:
    made = compiled("tiny_vit", bits=4)
    native = native_step(made, 4, PackOptions(labels=LABELS, bits=4, micro_batches=(4,),
                                              effective_batch=4))
    assert native is not None
    plan = plan_memory(native.model, threads=1).plan
    assert plan.liveness_peak_bytes <= plan_memory(made.steps[4].model, threads=1
                                                   ).plan.liveness_peak_bytes


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "bundle"
    options = PackOptions(labels=LABELS, micro_batches=(4,), effective_batch=8, threads=1)
    return pack_captured(captured("tiny_vit"), out, options).path


def steps(bundle: Path, **options: Any) -> tuple[bool, list[float]]:
    trainer = Trainer(bundle, threads=1, **options)
    spec = trainer.bundle.manifest.inputs[0]
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(4):
        images = rng.standard_normal((8, *spec.shape), dtype=np.float32)
        losses.append(trainer.step({spec.name: images}, rng.integers(5, size=8), lr=1e-2).loss)
    return trainer.native, losses


def test_training_is_the_same_in_both_forms(packed: Path) -> None:
    native, losses = steps(packed)
    assert native
    portable, others = steps(packed, kernels="portable")
    assert not portable
    np.testing.assert_allclose(losses, others, rtol=1e-5)


def test_the_bundle_says_what_both_were_seen_to_do(packed: Path) -> None:
    with Bundle.open(packed) as bundle:
        graph, = bundle.manifest.graphs.train
        assert graph.native is not None and bundle.has_native
        for form in (graph, graph.native):
            assert form.evidence.arena_measured_bytes <= form.plan.arena_bytes
            assert form.evidence.gradient_error is not None
        bundle.choose_kernels(native=True)
        chosen, = bundle.manifest.graphs.train
        assert (chosen.file, chosen.native) == (graph.native.file, None)
        bundle.choose_kernels(native=False)
        assert bundle.manifest.graphs.train[0].file == graph.file
    said = CliRunner().invoke(app, ["inspect", str(packed), "--json"])
    assert said.exit_code == 0 and "train_b4.native.onnx" in said.output


def test_without_kernels_the_portable_form_runs(packed: Path, monkeypatch: pytest.MonkeyPatch,
                                                ) -> None:
    monkeypatch.setenv("S2A_EDGE_NATIVE", "0")
    assert not steps(packed)[0]
    with pytest.raises(DeviceError, match="S2A_EDGE_NATIVE=0"):
        Trainer(packed, kernels="native")


def test_asked_for_without_a_compiler_they_are_refused(packed: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2A_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    library._status.cache_clear()
    with pytest.raises(DeviceError, match="no C compiler"):
        Trainer(packed, kernels="native")
    library._status.cache_clear()


def test_a_bundle_can_be_packed_without(tmp_path: Path) -> None:
    options = PackOptions(labels=LABELS, micro_batches=(4,), effective_batch=4, threads=1,
                          native=False)
    path = pack_captured(captured("tiny_vit"), tmp_path / "bundle", options).path
    assert not list(path.glob("*.native.onnx"))
    with pytest.raises(DeviceError, match="a bundle without such a form"):
        Trainer(path, kernels="native")


def test_the_command_says_where_the_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(app, ["kernels"])
    found = library.find_library()
    assert said.exit_code == 0 and found is not None
    assert found.name in said.output.replace("\n", "")
    monkeypatch.setenv("S2A_EDGE_NATIVE", "0")
    said = CliRunner().invoke(app, ["kernels", "--json"])
    assert said.exit_code == 1 and '"library": null' in said.output


def test_sums_are_joined_where_no_more_is_alive() -> None:
    x = np.random.default_rng(0).standard_normal((5, 64, 256)).astype(np.float32)
    for sums, expected in ((True, {"Add5"}), (False, set())):
        g = GraphBuilder(native=True)
        terms = [g.input(f"x{i}", ir.DataType.FLOAT, x.shape[1:]) for i in range(5)]
        total = terms[0]
        for term in terms[1:]:
            total = g.op("Add", total, term)
        model = model_of(terms, [g.op("Neg", total)], g, "sum")
        fuse_native(model, sums=sums)
        assert operators(model) == expected
        out, = run(session(ir.to_proto(model)), {f"x{i}": x[i] for i in range(5)}).values()
        np.testing.assert_array_equal(out, -(x[0] + x[1] + x[2] + x[3] + x[4]))


def test_an_accumulator_is_not_part_of_a_sum() -> None:
    """Its new value is written over the old one."""
    g = GraphBuilder(native=True)
    terms = [g.input(f"x{i}", ir.DataType.FLOAT, (64, 256)) for i in range(3)]
    model = model_of(terms, [g.op("Add", g.op("Add", terms[0], terms[1]), terms[2])], g, "sum")
    fuse_native(model)
    assert not operators(model)


def test_the_runtime_is_told_shapes_behind_a_kernel(tmp_path: Path) -> None:
    """Else it would not write over operands, as the plan takes for granted."""
    g = GraphBuilder(native=True)
    terms = [g.input(f"x{i}", ir.DataType.FLOAT, (64, 1024)) for i in range(3)]
    total = g.op("Add", g.op("Add", *(g.op("Neg", t) for t in terms[:2])), g.op("Neg", terms[2]))
    model = model_of(terms, [g.op("ReduceSum", g.op("Relu", total))], g, "sum")
    fuse_native(model)
    assert operators(model) == {"Add3"}
    emit_model(model, {}, tmp_path / "g.onnx")
    plan = plan_memory(model, threads=1).plan
    assert plan.liveness_peak_bytes == 4 * 64 * 1024 * 4  # Relu takes none of its own
    ones = np.ones((64, 1024), np.float32)
    np.savez(tmp_path / "x.npz", x0=ones, x1=ones, x2=ones)
    assert run_graph(tmp_path / "g.onnx", inputs=tmp_path / "x.npz", threads=1,
                     arena_bytes=plan.arena_bytes, kernels=find_library()).ok
