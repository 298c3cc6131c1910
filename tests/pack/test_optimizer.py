"""The optimizer graph against torch.optim, and what it must never do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from s2a_edge.pack.adapt import Trainable
from s2a_edge.pack.emit import check_emitted
from s2a_edge.pack.graph import shape_of
from s2a_edge.pack.optimizer import SCALARS, STATES, optimizer_model
from s2a_edge.spec.errors import UsageError
from tests.pack.compiled import Arrays, run, session
from tests.pack.updating import Update

STEPS = 10
OFF = 3.4e38
ADAMW = {"lr": 0.01, "weight_decay": 0.05, "max_norm": OFF, "beta1": 0.9, "beta2": 0.99,
         "eps": 1e-8}
SGD = {"lr": 0.05, "weight_decay": 0.0, "max_norm": OFF, "momentum": 0.9}
SETTINGS: dict[str, dict[str, float]] = {"adamw": ADAMW, "sgd": SGD}
# Ten steps of a few float32 roundings each, of values of about one.
TOLERANCE = 2e-6


def _trainables() -> tuple[Trainable, ...]:
    rng = np.random.default_rng(0)

    def make(name: str, kind: str, *shape: int) -> Trainable:
        value = ir.Value(name=f"param.{name}", type=ir.TensorType(ir.DataType.FLOAT),
                         shape=ir.Shape(list(shape)))
        return Trainable(name, value, rng.standard_normal(shape).astype(np.float32), kind, "m",
                         decay=kind == "head_weight")

    return (make("a.bias", "bias", 7), make("head.weight", "head_weight", 3, 4),
            make("head.bias", "head_bias", 3))


TRAINABLES = _trainables()


def _gradients(scale: float = 1.0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        yield {t.name: (scale * rng.standard_normal(t.initial.shape)).astype(np.float32)
               for t in TRAINABLES}


class Ours:
    """Parameters and states, stepped by the graph."""

    def __init__(self, kind: str, settings: Mapping[str, float]) -> None:
        self.kind, self.settings, self.step_number = kind, dict(settings), 0
        self.update = Update(TRAINABLES, kind)
        self.values: Arrays = {f"param.{t.name}": t.initial for t in TRAINABLES}
        self.values |= {f"{state}.{t.name}": np.zeros_like(t.initial)
                        for t in TRAINABLES for state in STATES[kind]}
        self.norm = 0.0

    def step(self, gradients: Mapping[str, np.ndarray]) -> None:
        self.step_number += 1
        scalars = dict(self.settings)
        if self.kind == "adamw":
            for n in ("1", "2"):
                scalars[f"correction{n}"] = 1 - scalars[f"beta{n}"] ** self.step_number
        self.values = self.update(
            {**self.values, **{f"acc.{n}": g for n, g in gradients.items()}}, scalars)
        self.norm = self.update.norm


def _torch(kind: str, settings: Mapping[str, float], gradients: Iterator[dict[str, np.ndarray]],
           ) -> dict[str, np.ndarray]:
    parameters = {t.name: torch.nn.Parameter(torch.tensor(t.initial)) for t in TRAINABLES}
    decaying = [parameters[t.name] for t in TRAINABLES if t.decay]
    groups = [{"params": decaying, "weight_decay": settings["weight_decay"]},
              {"params": [p for t, p in zip(TRAINABLES, parameters.values(), strict=True)
                          if not t.decay], "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings["lr"], eps=settings["eps"],
                                      betas=(settings["beta1"], settings["beta2"]))
    else:
        optimizer = torch.optim.SGD(groups, lr=settings["lr"], momentum=settings["momentum"])
    for step in gradients:
        for name, gradient in step.items():
            parameters[name].grad = torch.tensor(gradient)
        if settings["max_norm"] < OFF:
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings["max_norm"])
        optimizer.step()
    return {name: p.detach().numpy() for name, p in parameters.items()}


@pytest.mark.parametrize(("kind", "changed"), [
    ("adamw", {}), ("adamw", {"lr": 0.2, "beta1": 0.5, "beta2": 0.7}), ("adamw", {"eps": 0.1}),
    ("adamw", {"weight_decay": 0.0}), ("adamw", {"max_norm": 0.5}), ("adamw", {"max_norm": 100.0}),
    ("sgd", {}), ("sgd", {"momentum": 0.0}), ("sgd", {"max_norm": 0.5}),
])
def test_ten_steps_equal_torchs(kind: str, changed: dict[str, float]) -> None:
    settings = {**SETTINGS[kind], **changed}
    ours = Ours(kind, settings)
    for gradients in _gradients():
        ours.step(gradients)
    for name, expected in _torch(kind, settings, _gradients()).items():
        np.testing.assert_allclose(ours.values[f"param.{name}"], expected, rtol=TOLERANCE,
                                   atol=10 * TOLERANCE * settings["lr"], err_msg=name)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_decay_is_decoupled_and_only_for_the_heads_weight(kind: str) -> None:
    """With no gradient, a step multiplies by 1 - lr λ and does nothing else."""
    ours = Ours(kind, {**SETTINGS[kind], "weight_decay": 0.5})
    ours.step({t.name: np.zeros_like(t.initial) for t in TRAINABLES})
    for t in TRAINABLES:
        factor = 1 - SETTINGS[kind]["lr"] * 0.5 if t.decay else 1.0
        np.testing.assert_allclose(ours.values[f"param.{t.name}"], t.initial * factor, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_norm_is_that_of_all_gradients_before_clipping(kind: str) -> None:
    ours = Ours(kind, {**SETTINGS[kind], "max_norm": 0.1})
    gradients = next(_gradients())
    ours.step(gradients)
    expected = math.sqrt(sum(float(np.sum(np.square(g))) for g in gradients.values()))
    assert ours.norm == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: str, poison: float) -> None:
    """3e38 is finite itself, its square is not: neither is the norm."""
    ours = Ours(kind, SETTINGS[kind])
    steps = _gradients()
    ours.step(next(steps))
    before = dict(ours.values)
    bad = next(steps)
    bad["head.weight"][1, 2] = poison
    ours.step(bad)
    assert not math.isfinite(ours.norm)
    for name, value in before.items():
        np.testing.assert_array_equal(ours.values[name], value, err_msg=name)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_huge_and_vanishing_gradients_stay_finite(kind: str) -> None:
    for scale in (1e-25, 1e15):
        ours = Ours(kind, {**SETTINGS[kind], "max_norm": 1.0})
        for gradients in _gradients(scale):
            ours.step(gradients)
        assert all(np.isfinite(v).all() for v in ours.values.values())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_inputs_and_outputs_are_those_of_the_contract(kind: str) -> None:
    graph = optimizer_model(128, kind).graph
    roles = ["param", *STATES[kind]]
    assert {v.name for v in graph.inputs} == {*roles, "acc", *SCALARS[kind]}
    assert {v.name for v in graph.outputs} == {f"{role}_out" for role in roles}
    assert {shape_of(v) for v in graph.outputs} == {(128,)}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_updates_come_last_so_that_they_may_be_in_place(kind: str) -> None:
    model = optimizer_model(64, kind)
    check_emitted(model)
    rng = np.random.default_rng(3)
    values = {role: np.abs(rng.standard_normal(64)).astype(np.float32)
              for role in ("param", "acc", *STATES[kind])}
    values |= {n: np.asarray(0.5, np.float32) for n in SCALARS[kind]}
    made = session(model)
    expected = run(made, values)
    bound = {n: ort.OrtValue.ortvalue_from_numpy(v.copy()) for n, v in values.items()}
    binding = made.io_binding()
    for port in made.get_inputs():
        binding.bind_ortvalue_input(port.name, bound[port.name])
    for port in made.get_outputs():
        binding.bind_ortvalue_output(port.name, bound[port.name.removesuffix("_out")])
    made.run_with_iobinding(binding)
    for name, value in expected.items():
        np.testing.assert_array_equal(bound[name.removesuffix("_out")].numpy(), value)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_nothing_is_written_before_all_of_a_chunks_memory_was_taken(kind: str) -> None:
    """An arena that is exhausted must not leave a moment updated and its parameter not."""
    nodes = list(optimizer_model(64, kind).graph)
    writing = [n.op_type for n in nodes if any(v.is_graph_output() for v in n.outputs)]
    assert [n.op_type for n in nodes[-len(writing):]] == writing == ["Identity"] * len(writing)


def test_unknown_optimizers_are_refused() -> None:
    with pytest.raises(UsageError, match="adamw or sgd"):
        optimizer_model(64, "lion")
