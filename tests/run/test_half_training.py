"""Training in float16 on its float32 twin: scaled gradients, skipped steps, resumed runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge import Bundle, Trainer, pack
from s2a_edge.run.checkpoint import read_checkpoint
from s2a_edge.run.loss_scale import LossScale
from s2a_edge.run.report import Progress
from s2a_edge.spec.errors import DeviceError, NonFiniteLossError
from tests.run.test_fit import signal_at

_LABELS = ("a", "b", "c")
_SOURCE = "tests.pack.models:tiny_vit"


def _packed(folder: Path, precision: str, *, emulate: bool = True) -> Path:
    pack(_SOURCE, folder, labels=_LABELS, micro_batches=(4,), effective_batch=8,
         precision=precision, emulate=emulate, native=False)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float16, to be run on a CPU."""
    return _packed(tmp_path_factory.mktemp("half") / "bundle", "fp16")


@pytest.fixture(scope="module")
def arrays(bundle: Path) -> dict[str, np.ndarray]:
    """24 samples that can be told apart, three optimizer steps an epoch."""
    spec = Bundle.open(bundle).manifest.inputs[0]
    labels = np.arange(24) % 3
    images = np.random.default_rng(1).standard_normal((24, *spec.shape)).astype(np.float32)
    return {spec.name: images + labels[:, None, None, None].astype(np.float32), "labels": labels}


@pytest.fixture
def npz(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    return _write(tmp_path / "data.npz", arrays)


@pytest.fixture
def overflowing(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """One sample is beyond float16, so that one step of every epoch overflows."""
    name = next(n for n in arrays if n != "labels")
    images = arrays[name].copy()
    images[5] *= 1e6
    return _write(tmp_path / "overflowing.npz", {**arrays, name: images})


def _write(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def _steps(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == "step"]


def _batch(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {n: a[:8] for n, a in arrays.items() if n != "labels"}, arrays["labels"][:8]


def test_a_step_whose_gradients_overflow_changes_nothing_but_the_scale(
    bundle: Path, arrays: dict[str, np.ndarray]
) -> None:
    trainer, (inputs, labels) = Trainer(bundle), _batch(arrays)
    trainer.step(inputs, labels, lr=1e-2)
    before = trainer.state.snapshot()
    trainer.state.loss_scale = LossScale(2.0**24)
    result = trainer.step(inputs, labels, lr=1e-2)
    assert np.isfinite(result.loss) and not np.isfinite(result.grad_norm)
    assert trainer.state.loss_scale == LossScale(2.0**23, skipped_steps=1)
    for name, value in trainer.state.snapshot().items():
        np.testing.assert_array_equal(value, before[name])
    while not np.isfinite(trainer.step(inputs, labels, lr=1e-2).grad_norm):
        pass
    assert trainer.state.loss_scale.value > 1
    assert any((trainer.state.snapshot()[n] != before[n]).any() for n in before)


@pytest.mark.parametrize("sample", [1, 6])  # in the first micro-batch, in the second
def test_one_micro_batch_that_overflows_skips_the_whole_step(
    bundle: Path, arrays: dict[str, np.ndarray], sample: int
) -> None:
    trainer, (inputs, labels) = Trainer(bundle), _batch(arrays)
    before = trainer.state.snapshot()
    name = next(iter(inputs))
    large = inputs[name].copy()
    large[sample] *= 1e6
    assert not np.isfinite(trainer.step({name: large}, labels, lr=1e-2).grad_norm)
    for key, value in trainer.state.snapshot().items():
        np.testing.assert_array_equal(value, before[key])
    assert np.isfinite(trainer.step(inputs, labels, lr=1e-2).grad_norm)  # nothing is left over


def test_the_update_does_not_depend_on_the_scale(bundle: Path, arrays: dict[str, np.ndarray],
                                                 ) -> None:
    inputs, labels = _batch(arrays)
    norms = []
    for scale in (2.0**8, 2.0**14):
        trainer = Trainer(bundle)
        trainer.state.loss_scale = LossScale(scale)
        norms.append(trainer.step(inputs, labels, lr=1e-2).grad_norm)
        del trainer
    assert norms[0] == pytest.approx(norms[1], rel=2e-3)


def test_a_skipped_step_is_none_for_the_optimizer(bundle: Path, arrays: dict[str, np.ndarray],
                                                  ) -> None:
    """Adam's first update after it is Adam's first update."""
    inputs, labels = _batch(arrays)
    states = []
    for skip in (False, True):
        trainer = Trainer(bundle)
        if skip:
            trainer.state.loss_scale = LossScale(2.0**24)
            trainer.step(inputs, labels, lr=1e-2)
            assert trainer.state.loss_scale.skipped_steps == 1
            trainer.state.loss_scale = LossScale(skipped_steps=1)
        trainer.step(inputs, labels, lr=1e-2)
        states.append(trainer.state.snapshot())
        del trainer
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])


def test_where_no_scale_helps_it_is_an_error(bundle: Path, arrays: dict[str, np.ndarray]) -> None:
    trainer, (inputs, labels) = Trainer(bundle), _batch(arrays)
    trainer.state.loss_scale = LossScale(1.0)
    name = next(iter(inputs))
    with pytest.raises(NonFiniteLossError):
        trainer.step({name: inputs[name] * np.float32(1e6)}, labels, lr=1e-2)


def test_a_run_reports_what_it_skipped(bundle: Path, overflowing: Path, tmp_path: Path) -> None:
    summary = Trainer(bundle).fit(overflowing, epochs=3, lr=5e-3, out=tmp_path / "run",
                                  augment=False)
    assert (summary.skipped_steps, summary.loss_scale) == (3, 2.0**13)
    steps = _steps(tmp_path / "run")
    assert len(steps) == summary.steps == 9
    assert [s["skipped"] for s in steps].count(True) == 3
    for step in steps:
        assert (step["grad_norm"] is None) == (step["loss"] is None) == step["skipped"]
    assert steps[-1]["loss_scale"] == 2.0**13
    assert all(np.isfinite(record.loss) for record in summary.history)


def test_a_resumed_run_has_the_scale_and_the_losses_of_one_that_was_not_stopped(
    bundle: Path, overflowing: Path, tmp_path: Path
) -> None:
    def fit(out: Path, **more: Any) -> None:
        Trainer(bundle).fit(overflowing, epochs=3, lr=5e-3, out=out, augment=False, **more)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole)
    fit(parts, on_progress=signal_at(2, 2))
    stopped = read_checkpoint(parts / "last.safetensors")[0].loss_scale
    assert stopped is not None and stopped.skipped_steps in (1, 2)
    fit(parts, resume=True)
    keys = ("loss", "grad_norm", "loss_scale", "skipped")
    assert [[s[k] for k in keys] for s in _steps(whole)] == [
        [s[k] for k in keys] for s in _steps(parts)]
    (one, first), (two, second) = (read_checkpoint(r / "last.safetensors") for r in (whole, parts))
    assert one.loss_scale == two.loss_scale
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_losses_follow_those_of_float32(bundle: Path, npz: Path, tmp_path: Path) -> None:
    plain = _packed(tmp_path / "plain", "fp32", emulate=False)
    runs = [Trainer(b).fit(npz, epochs=4, lr=5e-3, out=tmp_path / n, augment=False)
            for b, n in ((bundle, "half"), (plain, "whole"))]
    half, whole = ([r.loss for r in run.history] for run in runs)
    assert whole[-1] < 0.9 * whole[0]
    np.testing.assert_allclose(half, whole, rtol=5e-3)
    assert (runs[0].skipped_steps, runs[0].loss_scale) == (0, 2.0**16)
    assert runs[1].loss_scale is None and "loss_scale" not in _steps(tmp_path / "whole")[0]


def test_a_new_run_begins_with_the_first_scale(bundle: Path, npz: Path, tmp_path: Path) -> None:
    trainer = Trainer(bundle)
    trainer.state.loss_scale = LossScale(2.0**20, 5, 7)
    seen: list[Progress] = []
    summary = trainer.fit(npz, epochs=1, lr=1e-3, out=tmp_path / "run", on_progress=seen.append)
    assert (summary.loss_scale, summary.skipped_steps) == (2.0**16, 0)


def test_a_bundle_for_the_gpu_is_refused_on_the_cpu_with_what_to_do(tmp_path: Path) -> None:
    made = _packed(tmp_path / "gpu", "fp16", emulate=False)
    manifest = Bundle.open(made).manifest
    assert manifest.compat.providers == ("cuda",)
    assert (manifest.recipe.precision, manifest.recipe.emulated) == ("fp16", False)
    evidence = manifest.graphs.train[0].evidence
    assert evidence.arena_measured_bytes == 0 and evidence.machine.endswith("float32 twin")
    assert evidence.gradient_error is not None and evidence.gradient_error.total < 0.02
    assert not list(made.glob("*.twin.onnx"))
    with pytest.raises(DeviceError, match="pack again"):
        Trainer(made, provider="cpu")
    shutil.rmtree(made)
