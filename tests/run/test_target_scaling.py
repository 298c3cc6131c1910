from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.manifest import Trainable

TARGETS = arrays.arrays(np.float32, (6, 2), elements=st.floats(-1e6, 1e6, width=32))


@given(TARGETS)
def test_scaled_targets_have_mean_0_and_deviation_1_and_come_back(targets: np.ndarray) -> None:
    scaling = TargetScaling.of(targets)
    scaled = scaling.apply(targets)
    assert scaled.dtype == np.float32
    spread = targets.astype(np.float64).std(axis=0)
    varied = spread > 1e-3 * np.abs(targets).max()
    np.testing.assert_allclose(scaled.mean(axis=0, dtype=np.float64), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(axis=0, dtype=np.float64)[varied], 1, rtol=1e-3)
    np.testing.assert_allclose(scaling.undo(scaled), targets, rtol=1e-5,
                               atol=1e-5 * max(1.0, float(np.abs(targets).max())))


def test_a_constant_output_keeps_its_scale() -> None:
    scaling = TargetScaling.of(np.array([[7.0, 1.0], [7.0, 3.0]], np.float32))
    assert (scaling.mean, scaling.std) == ((7.0, 2.0), (1.0, 1.0))


def manifest(*shapes: tuple[str, tuple[int, ...]]) -> Any:
    trainables = [Trainable(kind, shape, kind, "head", False, 0) for kind, shape in shapes]  # type: ignore[arg-type]  # kinds of heads
    return SimpleNamespace(trainables=trainables, task=SimpleNamespace(classes=2))


def test_a_folded_head_predicts_in_the_targets_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    head = {"head_weight": rng.standard_normal((2, 3)).astype(np.float32),
            "head_bias": rng.standard_normal(2).astype(np.float32), "other": np.ones(3, np.float32)}
    scaling = TargetScaling((100.0, -5.0), (20.0, 0.1))
    described = manifest(("head_weight", (2, 3)), ("head_bias", (2,)))
    folded = scaling.folded(head, described)
    expected = scaling.undo(x @ head["head_weight"].T + head["head_bias"])
    got = x @ folded["head_weight"].T + folded["head_bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert folded["other"] is head["other"]
    assert all(value.dtype == np.float32 for value in folded.values())


@pytest.mark.parametrize("shapes", [
    (("head_bias", (2,)),), (("head_weight", (3, 2)), ("head_bias", (2,))),
    (("head_weight", (2, 3)), ("head_bias", (1,)))])
def test_another_kind_of_head_is_refused(shapes: Any) -> None:
    with pytest.raises(BundleError, match="2 rows and as many biases"):
        TargetScaling.identity(2).folded({}, manifest(*shapes))
