from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.run.data.targets import soft_targets
from s2a_edge.spec.errors import UsageError


def test_known_rows() -> None:
    rows = soft_targets(np.array([2, 0]), 4, 0.2)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    np.testing.assert_array_equal(soft_targets(np.array([1]), 3), [[0, 1, 0]])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.floats(0, 1))
def test_rows_add_up_to_one_and_peak_at_the_label(labels: list[int], smoothing: float) -> None:
    rows = soft_targets(np.array(labels, dtype=np.int64), 10, smoothing)
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)
    assert (rows[np.arange(len(labels)), labels] == rows.max(axis=1)).all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(UsageError, match="label smoothing"):
        soft_targets(np.array([0]), 2, smoothing)
