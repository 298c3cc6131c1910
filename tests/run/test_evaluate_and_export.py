from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from s2a_edge.run.finished_run import evaluate_run, export_run, open_bundle
from s2a_edge.run.metrics import ClassificationResult
from s2a_edge.run.trainer import Trainer
from s2a_edge.spec.errors import CheckpointError, NonFiniteLossError, S2AError
from tests.run import toy_reference
from tests.run.toy_bundle import toy_samples, write_toy_bundle
from tests.run.toy_graphs import FROZEN


@pytest.fixture(scope="module")
def run(
    toy: Path, train_npz: Path, val_npz: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of four epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    Trainer(toy).fit(train_npz, val=val_npz, epochs=4, lr=0.1, out=out)
    return out


def top1_of(model: Path, x: np.ndarray, labels: np.ndarray) -> float:
    """With a default session, as any user of the file would make one."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"x": row[None]})[0][0] for row in x]
    return float(np.mean(np.argmax(rows, axis=1) == labels))


def test_evaluation_is_the_references(toy: Path, val_npz: Path) -> None:
    trainer = Trainer(toy)
    result = trainer.evaluate(val_npz)
    assert isinstance(result, ClassificationResult)
    x, labels = toy_samples(21, seed=2)
    frozen = trainer.bundle.weights()[FROZEN].astype(np.float64)
    params = {n: v.astype(np.float64) for n, v in trainer.state.read("param").items()}
    logits = toy_reference.logits_of(frozen, params, x.astype(np.float64))
    losses = toy_reference.cross_entropy(logits, np.eye(3)[labels])
    hits = logits.argmax(axis=1) == labels
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert (result.top1, result.n) == (hits.mean(), 21)
    assert [(row.samples, row.correct) for row in result.per_class] == [
        (int((labels == c).sum()), int((hits & (labels == c)).sum())) for c in range(3)
    ]
    assert [row.label for row in result.per_class] == ["class0", "class1", "class2"]


def test_an_exported_model_runs_anywhere_and_scores_as_eval_does(
    run: Path, val_npz: Path, tmp_path: Path
) -> None:
    x, labels = toy_samples(21, seed=2)
    for which in ("best", "last"):
        out = export_run(run, tmp_path / f"{which}.onnx", checkpoint=which).path
        onnx.checker.check_model(str(out), full_check=True)
        assert top1_of(out, x, labels) == evaluate_run(
            run, val_npz, checkpoint=which
        ).metrics["top1"]


def test_a_trainer_exports_what_it_holds(toy: Path, tmp_path: Path) -> None:
    trainer = Trainer(toy)
    x, labels = toy_samples(4)
    trainer.export(tmp_path / "before.onnx")
    trainer.step({"x": x}, labels, lr=0.1)
    trainer.export(tmp_path / "after.onnx")
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / f).graph.initializer}
        for f in ("before.onnx", "after.onnx")
    )
    assert np.array_equal(before[FROZEN], after[FROZEN])
    tuned = trainer.state.read("param")
    assert all(np.array_equal(after[f"param.{name}"], tuned[name]) for name in tuned)
    assert not np.array_equal(before["param.head.bias"], after["param.head.bias"])


def test_the_best_checkpoint_is_evaluated_unless_another_is_asked_for(
    run: Path, toy: Path, val_npz: Path
) -> None:
    trainer = Trainer(toy)
    trainer.load_checkpoint(run)
    best = trainer.evaluate(val_npz)
    assert best == evaluate_run(run, val_npz)
    trainer.load_checkpoint(run / "last.safetensors")
    assert trainer.evaluate(val_npz) == evaluate_run(run, val_npz, checkpoint="last")
    assert evaluate_run(toy, val_npz) == Trainer(toy).evaluate(val_npz) != best


def test_a_bundle_that_is_gone_or_another_is_an_error(
    run: Path, toy: Path, val_npz: Path, tmp_path: Path
) -> None:
    text = (run / "run.json").read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("last.safetensors", "best.safetensors"):
        (moved / name).write_bytes((run / name).read_bytes())
    (moved / "run.json").write_text(text.replace(str(toy.resolve()), str(tmp_path / "gone")))
    with pytest.raises(CheckpointError, match="nothing there"):
        evaluate_run(moved, val_npz)
    assert evaluate_run(moved, val_npz, bundle=toy) == evaluate_run(run, val_npz)
    other = write_toy_bundle(tmp_path / "other", optimizer="sgd")
    with pytest.raises(CheckpointError, match="say where the right bundle is"):
        export_run(moved, tmp_path / "x.onnx", bundle=other)
    assert not (tmp_path / "x.onnx").exists()
    with pytest.raises(CheckpointError, match="bundle"):
        Trainer(other).load_checkpoint(run)


def test_a_bundle_in_one_file_is_remembered_as_that_file(
    toy: Path, train_npz: Path, val_npz: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "toy.s2a"
    write_tar(toy, packed)
    out = tmp_path / "run"
    Trainer(packed).fit(train_npz, epochs=1, lr=0.1, out=out)
    assert f'"bundle": "{packed}"' in (out / "run.json").read_text()
    with open_bundle(out) as bundle:
        assert bundle.manifest.task.classes == 3


def test_logits_that_are_not_finite_are_an_error(toy: Path, val_npz: Path) -> None:
    trainer = Trainer(toy)
    trainer.state.inputs("param")["param.head.bias"].write(np.nan)
    with pytest.raises(NonFiniteLossError, match="finite logits"):
        trainer.evaluate(val_npz)


def test_what_is_neither_run_nor_bundle_is_an_error(tmp_path: Path, val_npz: Path) -> None:
    with pytest.raises(S2AError):
        evaluate_run(tmp_path, val_npz)


def write_tar(folder: Path, out: Path) -> None:
    import shutil

    from s2a_edge.spec.bundle import Bundle
    from s2a_edge.spec.bundle_write import write_bundle

    staging = out.parent / "staging"
    shutil.copytree(folder, staging)
    for name in ("manifest.json", "SHA256SUMS"):
        (staging / name).unlink()
    with Bundle.open(folder) as bundle:
        write_bundle(staging, bundle.manifest, out)
