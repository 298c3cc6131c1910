"""The board's runtime on a real NVIDIA GPU: ``pytest -m cuda tests/hardware``.

Everything that the CPU tests take for granted has to hold on the device too: no node falls back to
the CPU, the gradients are those of the CPU, training lowers the loss, a limit is a limit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from s2a_edge import Bundle, Trainer, pack
from s2a_edge.run.engine import Engine
from s2a_edge.spec.errors import BudgetError

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(),
                       reason="this onnxruntime has no CUDA provider"),
]

# float32 without TF32 on both sides; cuBLAS and MLAS sum in different orders.
_RELATIVE = 2e-4
_FACTORIES = ("tests.pack.models:tiny_vit", "tests.pack.models:tiny_resnet")


@pytest.fixture(scope="module", params=_FACTORIES, ids=["vit", "resnet"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("cuda") / "bundle"
    pack(request.param, out, labels=("a", "b", "c"), micro_batches=(4,), effective_batch=4, bits=4)
    return Bundle.open(out)


def _feeds(bundle: Bundle, engine: Engine, seed: int) -> dict[str, np.ndarray]:
    graph = engine.load(bundle.file(bundle.manifest.graphs.train[0].file))
    rng = np.random.default_rng(seed)
    parameters = bundle.initial_parameters()
    feeds = {}
    for name, port in graph.inputs.items():
        if name.startswith("param."):
            feeds[name] = parameters[name.removeprefix("param.")]
        elif name == "target":
            feeds[name] = np.eye(3, dtype=np.float32)[rng.integers(3, size=port.shape[0])]
        elif name == "weight":
            feeds[name] = np.full(port.shape, 0.25, np.float32)
        elif name.startswith("acc."):
            feeds[name] = np.zeros(port.shape, np.float32)
        else:
            feeds[name] = rng.standard_normal(port.shape).astype(np.float32)
    return feeds


def _run(bundle: Bundle, provider: str) -> dict[str, np.ndarray]:
    engine = Engine(arena_limit_bytes=None, provider=provider)  # type: ignore[arg-type]  # a test's own literal
    graph = engine.load(bundle.file(bundle.manifest.graphs.train[0].file))
    feeds = _feeds(bundle, engine, seed=0)
    inputs = {n: engine.tensor(p.shape, p.dtype) for n, p in graph.inputs.items()}
    outputs = {n: engine.tensor(p.shape, p.dtype) for n, p in graph.outputs.items()}
    for name, tensor in inputs.items():
        tensor.write(feeds[name])
    graph.bind(inputs, outputs)
    graph.run()
    return {name: tensor.read() for name, tensor in outputs.items()}


def test_gradients_equal_those_of_the_cpu(bundle: Bundle) -> None:
    """Also shows that no node falls back: the engine forbids that when it makes the session."""
    on_cpu, on_cuda = _run(bundle, "cpu"), _run(bundle, "cuda")
    assert on_cpu.keys() == on_cuda.keys()
    for name, expected in on_cpu.items():
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(on_cuda[name] / scale, expected / scale, atol=_RELATIVE,
                                   err_msg=name)


def test_training_lowers_the_loss(bundle: Bundle, tmp_path: Path) -> None:
    spec = bundle.manifest.inputs[0]
    rng = np.random.default_rng(1)
    labels = np.arange(24) % 3
    images = rng.standard_normal((24, *spec.shape)).astype(np.float32) + labels[
        :, None, None, None].astype(np.float32)
    arrays: dict[str, Any] = {spec.name: images, "labels": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    trainer = Trainer(bundle, provider="cuda")
    before = trainer.evaluate(tmp_path / "data.npz")
    trainer.fit(tmp_path / "data.npz", epochs=4, lr=5e-3, out=tmp_path / "run")
    assert trainer.evaluate(tmp_path / "data.npz").loss < before.loss


def test_a_device_limit_that_is_too_small_is_one_clear_error(bundle: Bundle) -> None:
    with pytest.raises(BudgetError):
        Trainer(bundle, provider="cuda", budget_bytes=1)
