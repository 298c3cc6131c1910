"""Losses and their gradients: finite differences in float64, PyTorch in float32, extremes."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.loss import LOSSES, attach_loss, cross_entropy
from s2a_edge.spec.task_ports import Loss, loss_inputs
from tests.pack.compiled import Arrays, run

N, C = 6, 5
RNG = np.random.default_rng(0)
F = torch.nn.functional
ENTRYWISE: list[Loss] = ["bce", "mse", "l1"]
ALL: list[Loss] = ["cross_entropy", *ENTRYWISE]


def _model(loss: Loss, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    g = GraphBuilder()
    shapes = {"logits": (N, C), **loss_inputs(loss, N, C)}
    values = [g.input(name, dtype, shape) for name, shape in shapes.items()]
    total, dlogits = LOSSES[loss](g, *values)
    total.name, dlogits.name = "loss", "dlogits"
    assert g.kind == "working"
    return model_of(values, [total, dlogits], g, "loss")


def _run(loss: Loss, logits: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Arrays:
    feeds = {"logits": logits, "target": target, "weight": weight}
    return run(_model(loss), {k: v.astype(np.float32) for k, v in feeds.items()})


def _weight(loss: Loss) -> np.ndarray:
    return RNG.uniform(0.1, 1.0, loss_inputs(loss, N, C)["weight"])


def _target(loss: Loss) -> np.ndarray:
    if loss == "cross_entropy":  # 2.5: the gradient must follow the loss as it is defined
        return 2.5 * np.eye(C)[RNG.integers(C, size=N)] + 0.1
    return RNG.uniform(0, 1, (N, C)) if loss == "bce" else RNG.standard_normal((N, C))


@pytest.mark.parametrize("loss", ALL)
def test_gradient_is_that_of_finite_differences(loss: Loss) -> None:
    """Central differences in float64, entry by entry, by onnx's reference evaluator."""
    evaluator = ReferenceEvaluator(ir.to_proto(_model(loss, ir.DataType.DOUBLE)))
    logits, target, weight = 3 * RNG.standard_normal((N, C)), _target(loss), _weight(loss)

    def loss_and_gradient(z: np.ndarray) -> list[np.ndarray]:
        feeds = {"logits": z, "target": target, "weight": weight}
        return cast("list[np.ndarray]", evaluator.run(None, feeds))

    gradient = loss_and_gradient(logits)[1]
    for index in np.ndindex(N, C):
        step = np.zeros((N, C))
        step[index] = 1e-5
        high, low = (float(loss_and_gradient(logits + s)[0]) for s in (step, -step))
        # Third derivatives of these losses are below 1: the differences are right to 1e-10.
        assert gradient[index] == pytest.approx((high - low) / 2e-5, rel=1e-6, abs=1e-9)


def _of_torch(loss: Loss, z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Terms [N] or [N, C], not yet weighted."""
    if loss == "cross_entropy":
        return -(target * z.log_softmax(-1)).sum(-1)
    if loss == "bce":
        return F.binary_cross_entropy_with_logits(z, target, reduction="none")
    square = loss == "mse"
    return (F.mse_loss if square else F.l1_loss)(z, target, reduction="none")


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("loss", ALL)
def test_loss_and_gradient_equal_torchs(loss: Loss, spread: float) -> None:
    logits = (spread * RNG.standard_normal((N, C))).astype(np.float32)
    target, weight = _target(loss).astype(np.float32), _weight(loss).astype(np.float32)
    got = _run(loss, logits, target, weight)
    x = torch.tensor(logits, requires_grad=True)
    total = (torch.tensor(weight) * _of_torch(loss, x, torch.tensor(target))).sum()
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert x.grad is not None
    # float32: a few units in the last place of sums of N * C terms.
    np.testing.assert_allclose(got["loss"], total.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(got["dlogits"], x.grad.numpy(), rtol=1e-5, atol=1e-6)


MEANS: dict[Loss, Any] = {
    "cross_entropy": F.cross_entropy, "bce": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss, "l1": F.l1_loss}


@pytest.mark.parametrize("loss", ALL)
def test_equal_weights_give_the_mean_that_everyone_knows(loss: Loss) -> None:
    logits = RNG.standard_normal((N, C)).astype(np.float32)
    target = (np.eye(C)[RNG.integers(C, size=N)] if loss == "cross_entropy" else _target(loss))
    shape = loss_inputs(loss, N, C)["weight"]
    got = _run(loss, logits, target, np.full(shape, 1 / np.prod(shape)))
    expected = MEANS[loss](torch.tensor(logits), torch.tensor(target, dtype=torch.float32))
    assert float(got["loss"]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_a_sample_of_weight_zero_changes_nothing(loss: Loss) -> None:
    logits, target, weight = RNG.standard_normal((N, C)), _target(loss), _weight(loss)
    weight[2] = 0.0
    other = logits.copy()
    other[2] = 50.0
    a, b = _run(loss, logits, target, weight), _run(loss, other, target, weight)
    assert a["loss"] == b["loss"] and not a["dlogits"][2].any()


def test_softmax_of_logits_far_apart_stays_finite() -> None:
    logits = np.array([[3e38, -3e38, 0, 0, 0]] * N)
    got = _run("cross_entropy", logits, np.eye(C)[[0] * N], np.ones(N))
    assert np.isfinite(got["dlogits"]).all()


def test_sigmoid_of_large_logits_is_exact_where_right_and_linear_where_wrong() -> None:
    """Not log(1 - 1) = -inf: a sure and right answer costs 0, a sure and wrong one |z|."""
    z = np.array([3e38, 1e4, 100.0, -100.0, -1e4])
    logits = np.stack([z, z, -z, -z, z, z])
    right = (logits > 0).astype(float)
    got = _run("bce", logits, right, np.ones((N, C)))
    # exp(-100) is left of what float32 can still hold.
    assert float(got["loss"]) < 1e-40 and np.abs(got["dlogits"]).max() < 1e-40
    logits[:, 0] = 0.0
    got = _run("bce", logits, 1.0 - right, np.ones((N, C)))
    # Column 0 holds zeros, whose answer is a coin's: log 2 each.
    assert float(got["loss"]) == pytest.approx(np.abs(logits).sum() + N * np.log(2), rel=1e-6)
    assert np.isfinite(got["dlogits"]).all()
    np.testing.assert_allclose(np.abs(got["dlogits"][:, 1:]), 1.0, rtol=1e-6)


def test_absolute_error_of_a_perfect_prediction_has_no_gradient() -> None:
    z = RNG.standard_normal((N, C))
    got = _run("l1", z, z, np.ones((N, C)))
    assert float(got["loss"]) == 0.0 and not got["dlogits"].any()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_given_loss_is_scaled_and_so_is_its_gradient(shape: tuple[int, ...]) -> None:
    g = GraphBuilder()
    value = g.input("value", ir.DataType.FLOAT, shape)
    inputs, total, gradient = attach_loss(g, "output", value)
    gradient.name = "gradient"
    assert [v.name for v in inputs] == ["loss_scale"]
    model = model_of([value, *inputs], [total, gradient], g, "loss")
    got = run(model, {"value": np.full(shape, 6.0, np.float32),
                      "loss_scale": np.asarray(0.25, np.float32)})
    assert (float(got["loss"]), got["loss"].shape) == (1.5, ())
    assert (float(got["gradient"].item()), got["gradient"].shape) == (0.25, shape)


def test_ports_are_those_of_the_task() -> None:
    for loss in ALL:
        g = GraphBuilder()
        logits = g.input("logits", ir.DataType.FLOAT, (N, C))
        inputs, total, _ = attach_loss(g, loss, logits)
        found = {v.name: tuple(v.shape or ()) for v in inputs}
        assert (found, total.name) == (loss_inputs(loss, N, C), "loss")
    assert LOSSES["cross_entropy"] is cross_entropy
