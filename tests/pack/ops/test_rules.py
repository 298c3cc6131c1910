"""Every rule, checked three ways: finite differences, torch.autograd, ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s2a_edge.pack.lower import lower
from s2a_edge.pack.ops import RULES
from s2a_edge.pack.precision import Precision
from tests.pack.compiled import session
from tests.pack.ops.machine import Built, build, executed, run_ort, run_reference
from tests.pack.ops.sample import Sample
from tests.pack.ops.samples import SAMPLES

# Central differences in float64 with step 1e-5: truncation ~1e-10, rounding ~1e-11 of the value.
_STEP, _DIFFERENCE_TOLERANCE = 1e-5, 1e-6
# Errors of the gradients of one operator, all its operands together: 0.7 % and 8.5 % were seen.
_COMPRESSED = {8: 0.02, 4: 0.15}
# float32 sums of a few dozen terms: some units in the last place (6e-8 each).
_FLOAT32_TOLERANCE = 3e-5


def _ids(samples: list[Sample]) -> list[str]:
    return [s.id for s in samples]


def test_every_rule_has_samples() -> None:
    assert {(s.domain, s.op) for s in SAMPLES} == set(RULES)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.double],
                         ids=_ids([s for s in SAMPLES if s.double]))
def test_gradient_equals_finite_difference(sample: Sample) -> None:
    built = build(sample, "float64")
    rng = np.random.default_rng(1)
    along = {k: rng.standard_normal(v.shape) for k, v in built.inputs.items()}
    analytic = run_reference(built, built.feeds)
    slope = sum(float(np.sum(analytic[f"d_{k}"] * u)) for k, u in along.items())

    def value(sign: float) -> float:
        feeds = {k: np.asarray(v + sign * _STEP * along[k]) for k, v in built.inputs.items()}
        outputs = list(run_reference(built, {**feeds, **built.seeds}).values())
        return sum(float(np.sum(y * dy)) for y, dy in zip(outputs, built.seeds.values(),
                                                          strict=False))

    difference = (value(1.0) - value(-1.0)) / (2 * _STEP)
    assert slope == pytest.approx(difference, rel=_DIFFERENCE_TOLERANCE,
                                  abs=_DIFFERENCE_TOLERANCE)


@pytest.mark.parametrize("sample", SAMPLES, ids=_ids(SAMPLES))
def test_gradient_equals_autograd(sample: Sample) -> None:
    built = build(sample, "float32")
    tensors = [torch.tensor(v, requires_grad=True) for v in built.inputs.values()]
    outputs = sample.torch(*tensors)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    torch.autograd.backward(outputs, [torch.tensor(dy) for dy in built.seeds.values()])
    got = run_ort(built, built.feeds)
    for tensor, name in zip(tensors, built.inputs, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(got[f"d_{name}"], tensor.grad.numpy(),
                                   rtol=_FLOAT32_TOLERANCE, atol=_FLOAT32_TOLERANCE)
    for y, expected in zip(list(got.values()), outputs, strict=False):
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=_FLOAT32_TOLERANCE,
                                   atol=_FLOAT32_TOLERANCE)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.double],
                         ids=_ids([s for s in SAMPLES if s.double]))
def test_runtime_equals_reference(sample: Sample) -> None:
    built = build(sample, "float32", seed=2)
    expected = run_reference(built, built.feeds)
    for name, value in run_ort(built, built.feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=_FLOAT32_TOLERANCE,
                                   atol=_FLOAT32_TOLERANCE, err_msg=name)


@pytest.mark.parametrize("sample", SAMPLES, ids=_ids(SAMPLES))
def test_gradient_from_compressed_saves(sample: Sample) -> None:
    exact = build(sample, "float32")
    if not exact.step.saved:
        return  # nothing to compress: the graphs are the same
    true = _gradients(exact)
    for bits, tolerance in _COMPRESSED.items():
        got = _gradients(build(sample, "float32", precision=Precision(bits, "store")))
        assert np.linalg.norm(got - true) <= tolerance * np.linalg.norm(true) + 1e-6, bits


def _gradients(built: Built) -> np.ndarray:
    """Of all operands, as one vector."""
    return np.concatenate([value.ravel() for name, value in run_ort(built, built.feeds).items()
                           if name.startswith("d_")])


_LAST = {(s.domain, s.op): s for s in SAMPLES}


@pytest.mark.parametrize("sample", _LAST.values(), ids=_ids(list(_LAST.values())))
def test_runtime_executes_what_is_written(sample: Sample, tmp_path: Path) -> None:
    """Operators without a kernel would be expanded, and their parts run out of order."""
    built = build(sample, "float32")
    lower(built.step.model)
    made = session(built.step.model, profile=tmp_path / "profile")
    made.run(None, built.feeds)
    assert executed(made.end_profiling()) == [node.name for node in built.step.model.graph]
