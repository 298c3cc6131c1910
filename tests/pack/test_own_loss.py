"""``--loss output:NAME``: graphs that compute their own loss, against PyTorch's autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from s2a_edge.pack.build import PackReport, pack
from s2a_edge.pack.capture import capture
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.options import PackOptions
from s2a_edge.run.finished_run import evaluate_run, export_run
from s2a_edge.run.metrics import LossResult
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import DataError, SourceError, UnsupportedOperatorError, UsageError
from tests.pack.compiled import run, session
from tests.pack.own_loss import CLASSES, INPUT, LOSSES, WithLoss, export
from tests.pack.updating import Update

BATCH, MICRO = 4, 2
OPTIONS: dict[str, Any] = {"loss": "output", "loss_output": "loss", "effective_batch": BATCH,
                           "micro_batches": (MICRO,), "bits": 32}
TRAINED = {"conv.bias", "norm.bias", "hidden.bias", "out.bias"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for name in LOSSES:
        export(name, folder / f"{name}.onnx")
    return folder


def compiled(path: Path, **options: Any) -> Compiled:
    given = PackOptions(**{**OPTIONS, **options})
    source = capture(str(path), loss=given.loss_output)
    return compile_backbone(source, given, lambda stage, detail: None)


def data(name: str, samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    is_class = LOSSES[name][1].dtype == torch.long
    target = rng.integers(0, CLASSES, samples) if is_class \
        else rng.standard_normal((samples, CLASSES)).astype(np.float32)
    return {"image": rng.standard_normal((samples, *INPUT)).astype(np.float32), "target": target}


def torchs(module: WithLoss, batch: dict[str, np.ndarray]) -> torch.Tensor:
    """The mean of the losses of the micro-batches: what an optimizer step minimizes."""
    parts = [module(*(torch.tensor(batch[k][i : i + MICRO]) for k in ("image", "target")))[0]
             for i in range(0, BATCH, MICRO)]
    return torch.stack(parts).mean()


@pytest.mark.parametrize("name", list(LOSSES))
def test_ten_steps_follow_torchs(files: Path, name: str) -> None:
    made = compiled(files / f"{name}.onnx")
    assert {t.name for t in made.trainables} == TRAINED  # not of the branch that the loss ignores
    train, update = session(made.steps[MICRO].model), Update(made.trainables, "sgd")
    module = WithLoss(LOSSES[name][0]).requires_grad_(False)
    own = {n: module.get_parameter(n).requires_grad_() for n in TRAINED}
    optimizer = torch.optim.SGD(own.values(), lr=0.1, momentum=0.9)
    state = {f"{kind}.{t.name}": np.zeros_like(t.initial) for t in made.trainables
             for kind in ("acc", "m")}
    state |= {f"param.{t.name}": t.initial for t in made.trainables}
    scalars = {"lr": 0.1, "weight_decay": 0.0, "max_norm": 3.4e38, "momentum": 0.9}
    ours, theirs = [], []
    for step in range(10):
        batch = data(name, BATCH, seed=step % 3)
        losses = []
        for start in range(0, BATCH, MICRO):
            rows = {k: v[start : start + MICRO] for k, v in batch.items()}
            feeds = {k: v for k, v in state.items() if not k.startswith("m.")}
            out = run(train, {**rows, **feeds, "loss_scale": np.asarray(MICRO / BATCH, np.float32)})
            losses.append(float(out.pop("loss")))
            state |= {k.replace("_out.", "."): v for k, v in out.items()}
        ours.append(sum(losses))
        state |= update(state, scalars)
        state |= {k: np.zeros_like(v) for k, v in state.items() if k.startswith("acc.")}
        optimizer.zero_grad()
        loss = torchs(module, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        theirs.append(float(loss.detach()))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert ours[9] < ours[0]
    for name_, parameter in own.items():
        np.testing.assert_allclose(state[f"param.{name_}"], parameter.detach().numpy(),
                                   rtol=1e-3, atol=1e-5, err_msg=name_)


def test_at_four_bits_the_loss_itself_is_kept_exactly(files: Path) -> None:
    made = compiled(files / "weighted.onnx", bits=4)
    behind = [s for s in made.steps[MICRO].saved if s.shape == (MICRO, CLASSES)]
    assert behind and all(s.codec == "float32" for s in behind)


def test_evaluation_gives_the_loss_and_export_the_other_outputs(files: Path) -> None:
    made = compiled(files / "cross_entropy.onnx")
    batch = data("cross_entropy", MICRO)
    parameters = {f"param.{t.name}": t.initial for t in made.trainables}
    module = WithLoss(LOSSES["cross_entropy"][0])
    with torch.no_grad():
        loss, z, aside = module(*(torch.tensor(v) for v in batch.values()))
    assert [v.name for v in made.evaluation.graph.outputs] == ["loss"]
    got = run(made.evaluation, {**batch, **parameters})
    assert got["loss"].shape == () and float(got["loss"]) == pytest.approx(float(loss), rel=1e-5)
    names = [v.name for v in made.inference.graph.inputs]
    assert "target" not in names and names[0] == "image"
    one = run(made.inference, {"image": batch["image"][:1], **parameters})
    assert list(one) == ["prediction", "aside"]
    np.testing.assert_allclose(one["prediction"], z[:1].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one["aside"], aside[:1].numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def packed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> PackReport:
    return pack(str(files / "cross_entropy.onnx"), tmp_path_factory.mktemp("packed") / "b.s2a",
                PackOptions(**{**OPTIONS, "bits": 4}))


def test_from_pack_to_export(packed: PackReport, tmp_path: Path) -> None:
    task, infer = packed.manifest.task, packed.manifest.graphs.infer
    assert (task.loss, task.classes, task.output) == ("output", 0, "loss")
    assert infer.inputs == ("image",) and packed.manifest.recipe.adapters == ("bias",)
    assert infer.outputs is not None
    assert [(x.name, x.shape) for x in infer.outputs] == [("prediction", (1, CLASSES)),
                                                          ("aside", (1, 2))]
    for name, samples in (("train", 19), ("val", 7)):
        np.savez(tmp_path / f"{name}.npz", **data("cross_entropy", samples))  # type: ignore[arg-type]  # names are data
    summary = Trainer(packed.path).fit(tmp_path / "train.npz", val=tmp_path / "val.npz", epochs=4,
                                       lr=0.02, out=tmp_path / "run")
    assert summary.steps == 4 * (19 // BATCH)
    assert summary.history[-1].loss < summary.history[0].loss
    result = evaluate_run(tmp_path / "run", tmp_path / "val.npz")
    assert isinstance(result, LossResult) and (result.n, result.left_out) == (6, 1)
    exported = export_run(tmp_path / "run", tmp_path / "tuned.onnx")
    assert exported.output == f"prediction [1, {CLASSES}], aside [1, 2]"
    tuned = ort.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    val = data("cross_entropy", 7)
    z = np.concatenate([tuned.run(["prediction"], {"image": x[None]})[0] for x in val["image"]])
    losses = torch.nn.functional.cross_entropy(torch.tensor(z), torch.tensor(val["target"]),
                                               reduction="none")
    assert float(losses[:6].mean()) == pytest.approx(result.loss, rel=1e-4)


def test_data_without_the_targets_input_is_refused(packed: PackReport, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=data("mse", 8)["image"])
    with pytest.raises(DataError, match="got no target"):
        Trainer(packed.path).fit(tmp_path / "d.npz", epochs=1, lr=0.1, out=tmp_path / "run")


@pytest.mark.parametrize(("name", "message"), [
    ("losss", r"no such output; outputs: loss \[\], prediction \[2, 5\], aside \[2, 2\]"),
    ("prediction", r"a float32 scalar output.* \[2, 5\]")])
def test_a_loss_that_is_none_is_refused(files: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        compiled(files / "mse.onnx", loss_output=name)


def test_other_sources_than_onnx_are_refused() -> None:
    with pytest.raises(SourceError, match="expected an ONNX file"):
        capture("tests.pack.models:tiny_vit", loss="loss")


def test_only_a_head_is_nothing_to_train(files: Path) -> None:
    with pytest.raises(SourceError, match="something to train"):
        compiled(files / "mse.onnx", adapters=("head",))


def test_a_fixed_batch_is_refused(files: Path, tmp_path: Path) -> None:
    model = onnx.load(files / "mse.onnx")
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(SourceError, match="dynamic batch axis"):
        compiled(tmp_path / "fixed.onnx")


def own(nodes: list[Any], path: Path) -> Path:
    """x [N, 4] -> linear -> whatever ``nodes`` make of its output y, ending in ``loss``."""
    weights = [helper.make_tensor("w", 1, [4, 3], np.ones(12)), helper.make_tensor(
        "b", 1, [3], np.zeros(3))]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"]), *nodes]
    graph = helper.make_graph(
        nodes, "own", [helper.make_tensor_value_info("x", 1, ["n", 4])],
        [helper.make_tensor_value_info("loss", 1, None)], weights)
    onnx.save(helper.make_model(graph, ir_version=10,
                                opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def test_a_loss_without_other_outputs_is_exported_itself(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["y"], ["loss"], keepdims=0)
    made = compiled(own([mean], tmp_path / "own.onnx"))
    (output,) = made.inference.graph.outputs
    assert (output.name, shape_of(output)) == ("loss", ())


def test_operators_without_a_rule_are_refused_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["d"], ["e"]), helper.make_node(
        "ReduceMean", ["e"], ["loss"], keepdims=0)]
    outer = helper.make_node("Einsum", ["y", "y"], ["d"], equation="ni,nj->nij")
    with pytest.raises(UnsupportedOperatorError, match="Det"):
        compiled(own([outer, *nodes], tmp_path / "own.onnx"))


def test_a_loss_that_no_gradient_reaches_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("ArgMax", ["y"], ["i"], axis=1), helper.make_node(
        "Cast", ["i"], ["f"], to=1), helper.make_node("ReduceMean", ["f"], ["loss"], keepdims=0)]
    with pytest.raises(SourceError, match=r"no gradient for Gemm\.bias"):
        compiled(own(nodes, tmp_path / "own.onnx"))


@pytest.mark.parametrize("given", [
    {"micro_batches": (3,)}, {"labels": ("a", "b")}, {"classes": 3}, {"features": "x"},
    {"pool": "cls"}, {"loss_output": None}, {"loss": "mse"}])
def test_options_that_contradict_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PackOptions(**{**OPTIONS, **given})
