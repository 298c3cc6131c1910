"""Cross-entropy with soft targets and weights against PyTorch's, in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from s2a_edge.pack.graph import GraphBuilder, model_of
from s2a_edge.pack.loss import cross_entropy
from tests.pack.compiled import Arrays, run

N, C = 6, 5
RNG = np.random.default_rng(0)


def _run(logits: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Arrays:
    g = GraphBuilder()
    values = [g.input(n, ir.DataType.FLOAT, a.shape) for n, a in
              (("logits", logits), ("target", target), ("weight", weight))]
    loss, dlogits = cross_entropy(g, values[0], values[1], values[2])
    dlogits.name = "dlogits"
    assert g.kind == "working"
    return run(model_of(values, [loss, dlogits], g, "loss"),
               {"logits": logits, "target": target, "weight": weight})


def _targets(kind: str) -> np.ndarray:
    hard = np.eye(C, dtype=np.float32)[RNG.integers(C, size=N)]
    if kind == "smoothed":
        return 0.9 * hard + np.float32(0.1 / C)
    if kind == "mixed":
        return 0.7 * hard + np.float32(0.3) * hard[::-1]
    if kind == "not normalized":  # the gradient must follow the loss as it is defined
        return 2.5 * hard
    return hard


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("kind", ["hard", "smoothed", "mixed", "not normalized"])
def test_loss_and_gradient_equal_autograd(kind: str, spread: float) -> None:
    logits = (spread * RNG.standard_normal((N, C))).astype(np.float32)
    target, weight = _targets(kind), RNG.uniform(0.0, 1.0, N).astype(np.float32)
    got = _run(logits, target, weight)
    x = torch.tensor(logits, requires_grad=True)
    loss = -(torch.tensor(weight)[:, None] * torch.tensor(target) * x.log_softmax(-1)).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert x.grad is not None
    # float32: a few units in the last place of sums of N * C terms.
    np.testing.assert_allclose(got["loss"], loss.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(got["dlogits"], x.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_it_is_the_mean_that_everyone_knows() -> None:
    logits = RNG.standard_normal((N, C)).astype(np.float32)
    index = RNG.integers(C, size=N)
    got = _run(logits, np.eye(C, dtype=np.float32)[index], np.full(N, 1 / N, np.float32))
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(index))
    assert float(got["loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_a_sample_of_weight_zero_changes_nothing() -> None:
    logits = RNG.standard_normal((N, C)).astype(np.float32)
    target, weight = _targets("hard"), np.ones(N, np.float32)
    weight[2] = 0.0
    other = logits.copy()
    other[2] = 50.0
    a, b = _run(logits, target, weight), _run(other, target, weight)
    assert a["loss"] == b["loss"] and not a["dlogits"][2].any()


def test_logits_far_apart_stay_finite() -> None:
    logits = np.array([[3e38, -3e38, 0, 0, 0]] * N, np.float32)
    got = _run(logits, _targets("smoothed") * 0 + np.eye(C, dtype=np.float32)[0],
               np.ones(N, np.float32))
    assert np.isfinite(got["dlogits"]).all()
