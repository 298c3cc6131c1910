"""The flat buffers of training: who stands where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.spec.state_layout import ALIGNED_ELEMENTS, state_layout

SIZES = st.lists(st.tuples(st.integers(1, 200_000), st.booleans()), min_size=1, max_size=40)


@given(SIZES)
def test_trainables_share_nothing_and_chunks_either_decay_or_do_not(
    sizes: list[tuple[int, bool]],
) -> None:
    layout = state_layout((str(i), n, decays) for i, (n, decays) in enumerate(sizes))
    end = 0
    for name in sorted(layout.first, key=lambda name: layout.first[name]):
        first, (elements, decays) = layout.first[name], sizes[int(name)]
        assert first >= end
        assert first % ALIGNED_ELEMENTS == 0
        end = first + elements
        chunks = {c for c in range(first // layout.chunk_elements,
                                   (end - 1) // layout.chunk_elements + 1)}
        listed = list(layout.chunks())
        assert {listed[c][1] for c in chunks} == {decays}
    assert end <= layout.elements
    assert layout.elements % layout.chunk_elements == 0


@given(SIZES)
def test_little_is_added_and_an_update_takes_few_runs(sizes: list[tuple[int, bool]]) -> None:
    layout = state_layout((str(i), n, decays) for i, (n, decays) in enumerate(sizes))
    aligned = sum(-(-n // ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS for n, _ in sizes)
    assert layout.elements - aligned < 2 * layout.chunk_elements
    assert layout.chunk_elements <= 65536
    assert len(list(layout.chunks())) <= max(9, aligned // 65536 + 2)


@pytest.mark.parametrize(("sizes", "chunk", "elements"), [
    ([(1, False)], 64, 64), ([(1, False), (1, True)], 64, 128), ([(1024, False)], 128, 1024),
    ([(2**20, True)], 65536, 2**20)])
def test_the_chunk_is_an_eighth_within_bounds(
    sizes: list[tuple[int, bool]], chunk: int, elements: int
) -> None:
    layout = state_layout((str(i), n, decays) for i, (n, decays) in enumerate(sizes))
    assert (layout.chunk_elements, layout.elements) == (chunk, elements)
    assert layout.size_bytes == 4 * elements
