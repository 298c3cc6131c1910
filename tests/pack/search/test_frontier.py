"""The set of rows that no other beats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.pack.search.candidates import Candidate, Saves
from s2a_edge.pack.search.frontier import Row, frontier, thinned

FIGURES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4))
ROWS = st.lists(FIGURES, min_size=1, max_size=30).map(
    lambda found: [Row(Candidate(n + 1, Saves("s", ()), "fp32", "all"), size, float(ms),
                       error / 10, 0.0, True) for n, (size, ms, error) in enumerate(found)])


def _beats(a: Row, b: Row) -> bool:
    ours, theirs = ((r.total_bytes, r.step_ms, r.error) for r in (a, b))
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))


@given(ROWS)
def test_nothing_on_it_is_beaten_and_everything_else_is(rows: list[Row]) -> None:
    kept = frontier(rows)
    assert kept
    for row in kept:
        assert not any(_beats(other, row) for other in rows)
    figures = [(r.total_bytes, r.step_ms, r.error) for r in kept]
    assert len(set(figures)) == len(figures)
    for row in rows:
        if row not in kept:
            assert any(_beats(k, row) or (k.total_bytes, k.step_ms, k.error)
                       == (row.total_bytes, row.step_ms, row.error) for k in kept)
    assert [r.total_bytes for r in kept] == sorted(r.total_bytes for r in kept)


@given(ROWS, st.integers(2, 8))
def test_thinned_keeps_the_chosen_and_the_order(rows: list[Row], most: int) -> None:
    kept = frontier(rows)
    chosen = rows[0]
    shown = thinned(kept, chosen, most)
    assert chosen in shown
    assert len(shown) <= max(most, 1)
    assert set(map(id, shown)) <= set(map(id, [*kept, chosen]))
    assert [r.total_bytes for r in shown] == sorted(r.total_bytes for r in shown)


def test_error_counts_what_does_not_train() -> None:
    row = Row(Candidate(1, Saves("s", ()), "fp32", "last:1"), 1, 1.0, 0.0, 0.25, True)
    assert row.error == 0.5
