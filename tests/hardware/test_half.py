"""float16 and bfloat16 on a real NVIDIA GPU: ``pytest -m cuda tests/hardware/test_half.py``.

The same tests run on the CPU with float32 twins (``pack --emulate``), which round as the formats
do; so what they ask for is known to hold but for the device itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from s2a_edge import Bundle, Trainer, pack
from s2a_edge.run.engine import Engine
from s2a_edge.run.loss_scale import LossScale
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.task_ports import GRADIENT_SCALE

_CUDA = pytest.param("cuda", marks=[
    pytest.mark.cuda,
    pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(),
                       reason="this onnxruntime has no CUDA provider")])
_LABELS = ("a", "b", "c")
_BATCH = 4
# Of the twin's, over all gradients: kernels sum in another order, and round a few values less or
# more often. Thrice what half precision itself costs (tests/parity/half_tolerances.py).
_RELATIVE = {"fp16": 5e-3, "bf16": 3e-2}


def _packed(folder: Path, model: str, precision: str, *, emulate: bool) -> Bundle:
    out = folder / f"{model}-{precision}-{emulate}"
    if not out.exists():
        pack(f"tests.pack.models:{model}", out, labels=_LABELS, micro_batches=(_BATCH,),
             effective_batch=_BATCH, bits=4, precision=precision, emulate=emulate, native=False)
    return Bundle.open(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("half")


def _gradients(bundle: Bundle, provider: str, scale: float) -> dict[str, np.ndarray]:
    """Every output of one run of the training graph, on inputs drawn by name."""
    engine = Engine(arena_limit_bytes=None, provider=provider)  # type: ignore[arg-type]  # a test's own literal
    graph = engine.load(bundle.file(bundle.manifest.graphs.train[0].file))
    inputs = {n: engine.tensor(p.shape, p.dtype) for n, p in graph.inputs.items()}
    outputs = {n: engine.tensor(p.shape, p.dtype) for n, p in graph.outputs.items()}
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {f"param.{n}": a for n, a in bundle.initial_parameters().items()}
    given["target"] = np.eye(3, dtype=np.float32)[rng.integers(3, size=_BATCH)]
    given["weight"] = np.full(_BATCH, 1 / _BATCH, np.float32)
    given[GRADIENT_SCALE] = np.asarray(scale, np.float32)
    name = _image(bundle.manifest)
    given[name] = rng.standard_normal(inputs[name].shape).astype(np.float32)
    for port, tensor in inputs.items():
        tensor.write(given.get(port, np.zeros(tensor.shape, np.float32)))
    graph.bind(inputs, outputs)
    graph.run()
    return {n: t.read() for n, t in outputs.items()}


def _image(manifest: Manifest) -> str:
    return manifest.inputs[0].name


def _flat(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([outputs[n].ravel().astype(np.float64) for n in sorted(outputs)
                           if n.startswith("acc_out.")])


@pytest.mark.parametrize("provider", ["cpu", _CUDA])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("model", ["tiny_vit", "tiny_resnet"])
def test_gradients_are_those_of_the_twin(folder: Path, model: str, precision: str, provider: str,
                                         ) -> None:
    """Also shows that no node falls back: the engine forbids that when it makes the session."""
    twin = _gradients(_packed(folder, model, precision, emulate=True), "cpu", 2.0**12)
    bundle = _packed(folder, model, precision, emulate=provider == "cpu")
    got = _gradients(bundle, provider, 2.0**10)  # the scale is undone
    assert np.isfinite(got["loss"])
    error = np.linalg.norm(_flat(got) - _flat(twin)) / np.linalg.norm(_flat(twin))
    assert error < _RELATIVE[precision]


@pytest.mark.parametrize("provider", ["cpu", _CUDA])
def test_an_overflow_skips_the_step_and_halves_the_scale(folder: Path, provider: Any) -> None:
    bundle = _packed(folder, "tiny_vit", "fp16", emulate=provider == "cpu")
    trainer = Trainer(bundle, provider=provider)
    inputs, labels = _samples(bundle, _BATCH)
    before = trainer.state.snapshot()
    trainer.state.loss_scale = LossScale(2.0**24)
    assert not np.isfinite(trainer.step(inputs, labels, lr=1e-2).grad_norm)
    assert trainer.state.loss_scale == LossScale(2.0**23, 0, 1)
    for name, value in trainer.state.snapshot().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("provider", ["cpu", _CUDA])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_lowers_the_loss(folder: Path, tmp_path: Path, precision: str, provider: Any,
                                  ) -> None:
    bundle = _packed(folder, "tiny_vit", precision, emulate=provider == "cpu")
    inputs, labels = _samples(bundle, 24)
    np.savez(tmp_path / "data.npz", **inputs, labels=labels)  # type: ignore[arg-type]  # names are data
    summary = Trainer(bundle, provider=provider).fit(
        tmp_path / "data.npz", epochs=4, lr=5e-3, out=tmp_path / "run", augment=False)
    assert summary.history[-1].loss < 0.9 * summary.history[0].loss
    assert (summary.loss_scale is None) == (precision == "bf16")


def _samples(bundle: Bundle, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    spec = bundle.manifest.inputs[0]
    labels = np.arange(count) % 3
    images = np.random.default_rng(1).standard_normal((count, *spec.shape)).astype(np.float32)
    return {spec.name: images + labels[:, None, None, None].astype(np.float32)}, labels
