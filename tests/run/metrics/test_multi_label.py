from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.run.metrics import evaluation_bytes
from s2a_edge.run.metrics.multi_label import MultiLabelTally, average_precision
from s2a_edge.spec.errors import NonFiniteLossError
from s2a_edge.spec.manifest import Task


def by_definition(scores: np.ndarray, on: np.ndarray) -> float:
    """Sum over thresholds, from the highest, of the gain in recall times the precision there."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        given = scores >= threshold
        now = (given & on).sum() / on.sum()
        total += (now - recall) * (given & on).sum() / given.sum()
        recall = now
    return total


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_its_definition(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float32)
    on = np.array([label for _, label in rows], np.bool_)
    got = average_precision(scores, on)
    if not on.any():
        assert got is None
    else:
        assert got == pytest.approx(by_definition(scores, on), abs=1e-12)


def test_average_precision_of_a_perfect_and_of_a_worthless_ranking() -> None:
    on = np.array([True, True, False, False])
    assert average_precision(np.array([4, 3, 2, 1], np.float32), on) == 1.0
    assert average_precision(np.zeros(4, np.float32), on) == 0.5  # the share of positives
    # Positives last: at ranks 3 and 4, precision 1/3 and 2/4.
    worst = average_precision(np.array([1, 2, 3, 4], np.float32), on)
    assert worst == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_figures_by_hand() -> None:
    tally = MultiLabelTally(("red", "round", "never", "missed"), 4, "here")
    on = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    logits = np.where(on, 1.0, -1.0).astype(np.float32)
    logits[2, 0] = 2.0  # a false alarm for red, above its positives
    logits[0, 3] = -0.5  # missed is not given, yet ranks first
    tally.add(logits[:3], on[:3])
    tally.add(logits[3:], on[3:])
    result = tally.result()
    red, round_, never, missed = result.per_label
    assert (red.positives, red.recall) == (2, 1.0)
    assert red.precision == pytest.approx(2 / 3) and red.f1 == pytest.approx(0.8)
    # The two positives of red share a rank behind the alarm: precision 2/3 there.
    assert red.average_precision == pytest.approx(2 / 3)
    assert (round_.f1, round_.average_precision) == (1.0, 1.0)
    assert (never.precision, never.recall, never.f1, never.average_precision) == (None,) * 4
    assert (missed.precision, missed.recall, missed.f1) == (None, 0.0, 0.0)
    assert missed.average_precision == 1.0
    assert result.mean_ap == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert result.macro_f1 == pytest.approx((0.8 + 1 + 0) / 3)
    assert result.accuracy == 14 / 16
    assert result.score.name == "mean_ap" and result.score.higher_is_better
    assert set(result.metrics) == {"mean_ap", "macro_f1", "accuracy"}


def test_loss_is_torchs_and_survives_large_logits() -> None:
    rng = np.random.default_rng(0)
    logits = (10 * rng.standard_normal((20, 3))).astype(np.float32)
    targets = rng.uniform(0, 1, (20, 3)).astype(np.float32)
    tally = MultiLabelTally("abc", 20, "here")
    tally.add(logits, targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits).double(), torch.tensor(targets).double())
    assert tally.loss() == pytest.approx(float(expected), rel=1e-12)
    tally = MultiLabelTally("abc", 1, "here")
    tally.add(np.array([[3e38, -3e38, 0]], np.float32), np.array([[1, 0, 1]], np.uint8))
    assert tally.loss() == pytest.approx(np.log(2) / 3)


def test_without_any_label_the_loss_decides() -> None:
    tally = MultiLabelTally("ab", 2, "here")
    tally.add(-np.ones((2, 2), np.float32), np.zeros((2, 2), np.uint8))
    result = tally.result()
    assert (result.mean_ap, result.macro_f1, result.accuracy) == (None, None, 1.0)
    assert (result.score.name, result.score.value) == ("loss", result.loss)
    assert result.metrics == {"accuracy": 1.0}


def test_logits_that_are_not_finite_are_an_error() -> None:
    tally = MultiLabelTally("ab", 1, "place")
    with pytest.raises(NonFiniteLossError, match="evaluation on place"):
        tally.add(np.array([[np.inf, 0]], np.float32), np.array([[0, 0]], np.uint8))


def test_the_memory_of_the_ranking_is_announced() -> None:
    tally = MultiLabelTally("abc", 1000, "here")
    held = tally._logits.nbytes + tally._on.nbytes
    assert held < evaluation_bytes(Task("bce", 3, ()), 1000) < 10 * held
    assert evaluation_bytes(Task("cross_entropy", 3, ()), 1000) == 0
