from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.spec.memory_plan import MemoryKind
from s2a_edge.spec.requirement import LineKind, requirement
from s2a_edge.spec.units import MIB
from s2a_edge.spec.waterfall import phase_needs, waterfall
from tests.spec.bundle_samples import manifest
from tests.spec.test_budget import manifest as with_arenas


@given(st.dictionaries(st.sampled_from(list(MemoryKind)), st.integers(0, 90 * MIB)))
def test_bars_follow_one_another_up_to_the_total(at_peak: dict[MemoryKind, int]) -> None:
    sample = manifest()
    plans = tuple(
        dataclasses.replace(g, plan=dataclasses.replace(g.plan, at_peak=at_peak))
        for g in sample.graphs.train
    )
    sample = dataclasses.replace(sample, graphs=dataclasses.replace(sample.graphs, train=plans))
    needed = requirement(sample)
    bars = waterfall(sample, needed)
    assert bars[0].start_bytes == 0
    assert bars[-1].end_bytes == needed.total_bytes
    assert all(a.end_bytes == b.start_bytes for a, b in itertools.pairwise(bars))
    assert all(bar.size_bytes > 0 for bar in bars)
    arena = [bar for bar in bars if bar.label.startswith("arena: ")]
    assert sum(bar.size_bytes for bar in arena) == needed.of_kind(LineKind.ARENA)


def test_every_phase_is_told() -> None:
    bundle = with_arenas({1: 10 * MIB, 4: 40 * MIB})
    needed = requirement(bundle)
    phases = {phase.phase: phase.total_bytes for phase in phase_needs(bundle, needed)}
    assert list(phases) == ["training step", "evaluation", "update", "export, on its own"]
    assert phases["training step"] == needed.total_bytes
    assert all(size <= needed.total_bytes for size in phases.values())
    assert phases["export, on its own"] < needed.total_bytes - 40 * MIB + 1
