"""The board's runtime on a real NVIDIA GPU: ``pytest -m cuda tests/hardware``.

Everything that the CPU tests take for granted has to hold on the device too: no node falls back to
the CPU, gradients and trajectory are those of the CPU, a limit is a limit, and the plan is what the
device holds. Where it can be, each body also runs with the CPU provider, in every test run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from s2a_edge import Bundle, Trainer, pack
from s2a_edge.run.device_memory import cuda_runtime
from s2a_edge.run.device_tensor import Provider
from s2a_edge.run.engine import Engine
from s2a_edge.run.engine_choice import choose_engine
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.requirement import LineKind

_NO_CUDA = "CUDAExecutionProvider" not in ort.get_available_providers()
_ON_CUDA = [pytest.mark.cuda,
            pytest.mark.skipif(_NO_CUDA, reason="this onnxruntime has no CUDA provider")]
# Both engines; the CPU's needs no GPU and runs always.
ENGINES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=_ON_CUDA)]
on_cuda = [pytest.mark.cuda, _ON_CUDA[1]]

# float32 without TF32 on both sides; cuBLAS and MLAS sum in different orders. A code near a cell's
# boundary may fall to the other side: gradients through codes differ by a share of a cell.
_EXACT, _CODED = 2e-4, 2e-2
_PLAN = 0.05  # of the measured device peak
_FACTORIES = ("tiny_vit", "tiny_resnet")
_SAMPLES = 16


def _packed(folder: Path, name: str, **options: Any) -> Bundle:
    out = folder / f"{name}-{'-'.join(map(str, options.values()))}"
    if not out.exists():
        source = name if ":" in name else f"tests.pack.models:{name}"
        given = {"micro_batches": (2, 4), "effective_batch": 8, "bits": 4, "native": False,
                 **options}
        pack(source, out, labels=("a", "b", "c"), **given)
    return Bundle.open(out)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    folder = tmp_path_factory.mktemp("cuda")
    return lambda name, **options: _packed(folder, name, **options)


def _data(bundle: Bundle, folder: Path) -> Path:
    spec = bundle.manifest.inputs[0]
    rng = np.random.default_rng(1)
    labels = np.arange(_SAMPLES) % 3
    images = rng.standard_normal((_SAMPLES, *spec.shape)).astype(np.float32) + labels[
        :, None, None, None].astype(np.float32)
    arrays: dict[str, Any] = {spec.name: images, "labels": labels}
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def _gradients(bundle: Bundle, provider: Provider) -> dict[str, np.ndarray]:
    engine = Engine(arena_limit_bytes=None, provider=provider)
    graph = engine.load(bundle.file(bundle.manifest.graphs.train[-1].file))
    rng = np.random.default_rng(0)
    parameters = bundle.initial_parameters()
    inputs = {n: engine.tensor(p.shape, p.dtype) for n, p in graph.inputs.items()}
    outputs = {n: engine.tensor(p.shape, p.dtype) for n, p in graph.outputs.items()}
    for name, tensor in inputs.items():
        if name.startswith("param."):
            tensor.write(parameters[name.removeprefix("param.")])
        elif name == "target":
            tensor.write(np.eye(3, dtype=np.float32)[rng.integers(3, size=tensor.shape[0])])
        elif name == "weight":
            tensor.write(np.full(tensor.shape, 0.25, np.float32))
        elif not name.startswith("acc."):
            tensor.write(rng.standard_normal(tensor.shape).astype(np.float32))
    graph.bind(inputs, outputs)
    graph.run()
    return {name: tensor.read() for name, tensor in outputs.items()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", _FACTORIES)
@pytest.mark.parametrize("bits", [32, 8, 4, 2])
def test_gradients_equal_those_of_the_cpu(
    name: str, bits: int, engine: Provider, bundles: Callable[..., Bundle],
) -> None:
    """Also shows that no node falls back: the engine forbids that when it makes the session."""
    if engine == "cpu" and bits in (8, 2):
        pytest.skip("the CPU's twin runs at 32 and 4 bits")
    bundle = bundles(name, bits=bits)
    expected, got = _gradients(bundle, "cpu"), _gradients(bundle, engine)
    assert expected.keys() == got.keys()
    difference = np.concatenate([(got[n] - expected[n]).ravel() for n in expected])
    whole = np.concatenate([expected[n].ravel() for n in expected])
    limit = _EXACT if bits == 32 else _CODED
    assert np.linalg.norm(difference) <= limit * np.linalg.norm(whole)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", _FACTORIES)
def test_a_run_follows_the_cpus(
    name: str, engine: Provider, bundles: Callable[..., Bundle], tmp_path: Path,
) -> None:
    bundle = bundles(name, bits=32)
    data = _data(bundle, tmp_path)
    losses = {}
    for provider, place in (("cpu", "reference"), (engine, "run")):
        trainer = Trainer(bundle, provider=provider)  # type: ignore[arg-type]  # cpu or cuda
        summary = trainer.fit(data, val=data, epochs=3, lr=5e-3, out=tmp_path / place)
        losses[place] = [record.loss for record in summary.history]
    np.testing.assert_allclose(losses["run"], losses["reference"], rtol=2e-3)
    assert losses["run"][-1] < losses["run"][0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_above_its_budget_fails_cleanly_and_the_next_one_works(
    engine: Provider, bundles: Callable[..., Bundle], tmp_path: Path,
) -> None:
    bundle = bundles("tiny_vit")
    with pytest.raises(BudgetError):
        Trainer(bundle, provider=engine, budget_bytes=1)
    small = Engine(arena_limit_bytes=8192, provider=engine)
    with pytest.raises(BudgetError):
        _run_once(small, bundle)
    data = _data(bundle, tmp_path)
    summary = Trainer(bundle, provider=engine).fit(data, epochs=1, lr=1e-3, out=tmp_path / "run")
    assert summary.steps == 2


def _run_once(engine: Engine, bundle: Bundle) -> None:
    graph = engine.load(bundle.file(bundle.manifest.graphs.eval.file))
    graph.bind({n: engine.tensor(p.shape, p.dtype) for n, p in graph.inputs.items()},
               {n: engine.tensor(p.shape, p.dtype) for n, p in graph.outputs.items()})
    graph.run()


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_and_accumulators_stay_on_the_device(
    engine: Provider, bundles: Callable[..., Bundle], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between micro-batches nothing of the state is read back, and only data is written."""
    bundle = bundles("tiny_vit")
    trainer = Trainer(bundle, provider=engine, micro_batch=2)
    moved: list[tuple[int, ...]] = []
    step = trainer._sessions.train
    state = {id(t) for t in step.state.inputs("param", "acc").values()}
    kind = type(next(iter(step.state.inputs("param").values())))
    for name in ("read", "write"):
        original = getattr(kind, name)

        def counted(self: Any, *given: Any, original: Any = original) -> Any:
            if id(self) in state:
                moved.append(self.shape)
            return original(self, *given)

        monkeypatch.setattr(kind, name, counted)
    spec = bundle.manifest.inputs[0]
    inputs = {spec.name: np.zeros((2, *spec.shape), np.float32)}
    rows = {"target": np.eye(3, dtype=np.float32)[:2], "weight": np.full(2, 0.125, np.float32)}
    for _ in range(4):
        step.accumulate(inputs, np.array([0, 1]), rows, where="test")
    assert moved == []


@pytest.mark.cuda
@on_cuda[1]
def test_auto_takes_the_gpu(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("tiny_vit").manifest
    chosen = choose_engine("auto", manifest, None)
    assert chosen.provider == "cuda"
    assert chosen.cuda_context_bytes > 0
    assert choose_engine("auto", manifest, 64 * 2**20).provider == "cpu"


class _DevicePeak:
    """Most device memory in use, sampled every millisecond."""

    def __enter__(self) -> _DevicePeak:
        self._runtime, self._stop = cuda_runtime(), threading.Event()
        self.before_bytes = self.least_bytes = self._runtime.memory().free_bytes
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.least_bytes = min(self.least_bytes, self._runtime.memory().free_bytes)
            time.sleep(0.001)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def taken_bytes(self) -> int:
        return self.before_bytes - self.least_bytes


@pytest.mark.cuda
@on_cuda[1]
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "swin_tiny_patch4_window7_224",
                                  "resnet50"])
def test_the_plan_is_the_devices_peak(
    name: str, bundles: Callable[..., Bundle], tmp_path: Path,
) -> None:
    """Within 5 %: what the budget counts on the device, without CUDA's context."""
    pytest.importorskip("timm")
    bundle = bundles(f"timm:{name}", micro_batches=(8,))
    counted = {LineKind.WEIGHTS, LineKind.ARENA, LineKind.TRAINABLES, LineKind.GRADIENTS,
               LineKind.OPTIMIZER}
    choose_engine("cuda", bundle.manifest, None)
    with _DevicePeak() as peak:
        trainer = Trainer(bundle, provider="cuda")
        data = _data(bundle, tmp_path)
        trainer.fit(data, val=data, epochs=1, lr=1e-3, out=tmp_path / "run")
    planned_bytes = trainer.requirement.of_kind(*counted)
    assert abs(planned_bytes - peak.taken_bytes) <= _PLAN * peak.taken_bytes


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation(engine: Provider, bundles: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = bundles("tiny_vit")
    data = _data(bundle, tmp_path)
    on_cpu = Trainer(bundle, training=False).evaluate(data)
    there = Trainer(bundle, training=False, provider=engine).evaluate(data)
    assert there.loss == pytest.approx(on_cpu.loss, rel=1e-4)
