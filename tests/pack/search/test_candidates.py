"""What there is to choose from."""

from __future__ import annotations

import dataclasses

import pytest

from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.search.candidates import (
    Candidate,
    allocations,
    depths,
    micro_batches,
    storages,
    ways_to_save,
)
from s2a_edge.pack.search.options import SearchOptions
from s2a_edge.spec.errors import UsageError

AUTO = SearchOptions()
BASE = PackOptions(classes=2, effective_batch=12, budget_bytes=1, auto=AUTO)


def test_micro_batches() -> None:
    assert micro_batches(BASE, AUTO, None) == (1, 2, 3, 4, 6, 8, 12)
    own = dataclasses.replace(BASE, loss="output", loss_output="l", classes=None)
    assert micro_batches(own, AUTO, None) == (1, 2, 3, 4, 6, 12)
    assert micro_batches(BASE, AUTO, 4) == (4,)
    assert micro_batches(BASE, SearchOptions(frozenset({"micro_batches"})), None) == (8,)


def test_what_is_fixed_has_one_row() -> None:
    assert len(ways_to_save(BASE, AUTO)) == 10
    assert [w.name for w in ways_to_save(BASE, SearchOptions(frozenset({"bits"})))] == [
        "4 bits", "4 bits, attention computed again",
        "4 bits, attention computed again, products run again"]
    alone = SearchOptions(frozenset({"attention", "recompute"}))
    assert [w.name for w in ways_to_save(BASE, alone)] == ["32 bits", "8 bits", "4 bits", "2 bits"]
    assert allocations(BASE, SearchOptions(frozenset({"bits"}))) == ()
    auto = dataclasses.replace(BASE, bits="auto")
    fixed = SearchOptions(frozenset({"bits"}))
    assert ways_to_save(auto, fixed) == ()
    assert allocations(auto, fixed)[0].share == 1.0
    assert storages(BASE, SearchOptions(frozenset({"frozen"}))) == ("fp32",)
    assert "int4" not in storages(BASE, AUTO, cpu=False)
    assert depths(BASE, AUTO, 12) == ("all", "last:6", "last:3", "last:1")
    assert depths(BASE, AUTO, 0) == ("all",)
    assert depths(dataclasses.replace(BASE, blocks="last:2"), AUTO, 12) == ("last:2",)


def test_options_and_flags_of_a_candidate() -> None:
    way = ways_to_save(BASE, AUTO)[3]
    made = Candidate(3, way, "int8", "last:6").options(BASE)
    assert (made.micro_batches, made.bits, made.attention) == ((3,), 8, "auto")
    assert (made.frozen, made.blocks, made.auto) == ("int8", "last:6", None)
    assert Candidate(3, way, "int8", "last:6").flags == (
        "--micro-batch 3 --bits 8 --attention auto --recompute cheap --frozen int8 "
        "--blocks last:6")


def test_refusals() -> None:
    with pytest.raises(UsageError, match="--budget or --device"):
        PackOptions(classes=2, auto=AUTO)
    with pytest.raises(UsageError, match="--max-gradient-error"):
        SearchOptions(max_gradient_error=0)
    with pytest.raises(UsageError, match="--times-from"):
        SearchOptions(times_from="guess")  # type: ignore[arg-type]  # that is the test
    with pytest.raises(UsageError, match="--saved-budget"):
        PackOptions(classes=2, auto=AUTO, budget_bytes=1, bits="auto", saved_budget_bytes=1)
    with pytest.raises(UsageError, match="half precision"):
        PackOptions(classes=2, auto=AUTO, budget_bytes=1, precision="fp16")
    # A micro-batch that is searched need not be a valid default.
    assert PackOptions(classes=2, auto=AUTO, budget_bytes=1, effective_batch=4)
