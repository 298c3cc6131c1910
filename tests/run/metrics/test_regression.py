from __future__ import annotations

import numpy as np
import pytest

from s2a_edge.run.metrics import RegressionResult, tally_for
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.errors import NonFiniteLossError
from s2a_edge.spec.manifest import Task
from s2a_edge.spec.task_ports import Loss

RNG = np.random.default_rng(0)
N = 40


def evaluated(loss: Loss, logits: np.ndarray, targets: np.ndarray, scaling: TargetScaling | None,
              labels: tuple[str, ...] = ()) -> RegressionResult:
    task = Task(loss, targets.shape[1], labels)
    tally = tally_for(task, len(targets), scaling, "place")
    for start in range(0, len(targets), 7):
        tally.add(logits[start : start + 7], targets[start : start + 7])
    result = tally.result()
    assert isinstance(result, RegressionResult)
    return result


@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_errors_are_in_the_targets_own_units(loss: Loss, mean: float) -> None:
    targets = (mean + np.array([3.0, 0.5]) * RNG.standard_normal((N, 2))).astype(np.float32)
    scaling = TargetScaling.of(targets)
    logits = (scaling.apply(targets) + 0.3 * RNG.standard_normal((N, 2))).astype(np.float32)
    result = evaluated(loss, logits, targets, scaling, ("width", "weight"))
    y = targets.astype(np.float64)
    error = logits * np.array(scaling.std) + np.array(scaling.mean) - y
    mae, mse = np.abs(error).mean(axis=0), np.square(error).mean(axis=0)
    r2 = 1 - np.square(error).sum(axis=0) / np.square(y - y.mean(axis=0)).sum(axis=0)
    assert [row.label for row in result.per_output] == ["width", "weight"]
    np.testing.assert_allclose([row.mae for row in result.per_output], mae, rtol=1e-9)
    np.testing.assert_allclose([row.rmse for row in result.per_output], np.sqrt(mse), rtol=1e-9)
    np.testing.assert_allclose([row.r2 or 0 for row in result.per_output], r2, rtol=1e-6)
    assert result.r2 == pytest.approx(r2.mean(), rel=1e-6)
    assert result.mae == pytest.approx(mae.mean())
    assert result.rmse == pytest.approx(np.sqrt(mse.mean()))
    relative = error / np.array(scaling.std)
    expected = np.abs(relative).mean() if loss == "l1" else np.square(relative).mean()
    assert result.loss == pytest.approx(expected, rel=1e-9)
    assert (result.score.name, result.score.higher_is_better) == ("loss", False)


def test_without_scaling_logits_are_the_predictions() -> None:
    targets = RNG.standard_normal((N, 1)).astype(np.float32)
    result = evaluated("mse", targets + 2, targets, None)
    assert result.mae == pytest.approx(2, rel=1e-6)
    assert result.loss == pytest.approx(4, rel=1e-6)
    assert [row.label for row in result.per_output] == ["0"]


def test_equal_targets_have_no_r2() -> None:
    targets = np.full((N, 1), 5.0, np.float32)
    result = evaluated("mse", targets + 1, targets, None)
    assert (result.r2, result.per_output[0].r2) == (None, None)
    assert set(result.metrics) == {"mae", "rmse"}


def test_predictions_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(NonFiniteLossError, match="finite predictions"):
        evaluated("mse", np.array([[np.nan]], np.float32), np.array([[0.0]], np.float32), None)
