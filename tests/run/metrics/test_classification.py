from __future__ import annotations

import numpy as np
import pytest
import torch

from s2a_edge.run.metrics import tally_for
from s2a_edge.run.metrics.classification import ClassificationTally
from s2a_edge.spec.errors import NonFiniteLossError
from s2a_edge.spec.manifest import Task

NAMES = ("ant", "bee", "cat")


def test_figures_by_hand() -> None:
    tally = ClassificationTally(NAMES, "here")
    logits = 5.0 * np.eye(3, dtype=np.float32)[[0, 0, 1, 0]]
    tally.add(logits[:3], np.array([0, 0, 1]))
    assert tally.score().value == 1.0
    tally.add(logits[3:], np.array([1]))
    result = tally.result()
    assert (result.top1, result.n) == (0.75, 4)
    counts = [(r.label, r.samples, r.correct, r.predicted) for r in result.per_class]
    assert counts == [("ant", 2, 2, 3), ("bee", 2, 1, 1), ("cat", 0, 0, 0)]
    # ant: precision 2/3, recall 1; bee: 1 and 1/2; cat does not occur at all.
    assert [row.f1 for row in result.per_class] == [pytest.approx(0.8), pytest.approx(2 / 3), None]
    assert result.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert (result.score.name, result.score.value) == ("top1", 0.75)
    assert result.metrics == {"top1": 0.75, "macro_f1": result.macro_f1}


def test_loss_is_torchs_and_survives_large_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((20, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 20)
    tally = ClassificationTally(NAMES, "here")
    tally.add(logits, labels)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits).double(),
                                                 torch.tensor(labels))
    assert tally.loss() == pytest.approx(float(expected), rel=1e-12)
    tally = ClassificationTally(NAMES, "here")
    tally.add(np.array([[3e38, -3e38, 0]], np.float32), np.array([0]))
    assert tally.loss() == 0.0


def test_logits_that_are_not_finite_are_an_error() -> None:
    tally = tally_for(Task("cross_entropy", 3, NAMES), 1, None, "place")
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteLossError, match="evaluation on place"):
            tally.add(np.array([[bad, 0, 0]], np.float32), np.array([0]))
