"""A pack that does not fit says what would, and the effects were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import s2a_edge
from s2a_edge.pack import cheaper
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.search.options import SEARCHED, SearchOptions
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.frozen_weights import FrozenStorage
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import requirement
from s2a_edge.spec.units import MIB

RECIPE: dict[str, Any] = {
    "input_shape": (3, 256, 256),
    "classes": 3,
    "effective_batch": 16,
    "micro_batches": (16,),
    "native": False,
    "calibration_samples": 1,
}
SOURCE = "tests.pack.models:tiny_resnet"


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    path = tmp_path_factory.mktemp("b") / "b.s2a"
    s2a_edge.pack(SOURCE, path, **RECIPE)
    with Bundle.open(path) as bundle:
        return bundle.manifest


def test_changes_are_named_with_their_effects(unbounded: Manifest, tmp_path: Path) -> None:
    budget_bytes = requirement(unbounded).total_bytes - 12 * MIB
    with pytest.raises(BudgetError) as caught:
        s2a_edge.pack(SOURCE, tmp_path / "x.s2a", budget_bytes=budget_bytes, **RECIPE)
    error = caught.value
    assert 0 < error.missing_bytes < 24 * MIB
    assert 1 <= len(error.changes) <= 3
    for change in error.changes:
        assert change["fits"] and change["how"] == "measured at pack time"
        assert change["total_bytes"] <= budget_bytes  # type: ignore[operator]  # JSON-ready
        assert change["slower"] is not None
        assert str(change["flags"]) in error.todo
    assert any("--micro-batch" in str(change["flags"]) for change in error.changes)
    assert error.todo.startswith("pack again with ")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_tried_where_the_fixed_parts_are_too_large(tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(BudgetError, match="smaller backbone") as caught:
        s2a_edge.pack(
            SOURCE,
            tmp_path / "x.s2a",
            budget_bytes=20 * MIB,
            on_stage=lambda stage, detail: stages.append(stage),
            **{**RECIPE, "input_shape": (3, 32, 32)},
        )
    assert caught.value.changes == ()
    assert "try" not in stages


def test_a_search_that_finds_nothing_names_what_was_fixed(
    unbounded: Manifest, tmp_path: Path
) -> None:
    """Everything but the storage of weights is fixed, and no weight here is worth coding."""
    fixed = frozenset(SEARCHED) - {"frozen"}
    budget_bytes = requirement(unbounded).total_bytes - 6 * MIB
    with pytest.raises(BudgetError) as caught:
        s2a_edge.pack(SOURCE, tmp_path / "x.s2a", budget_bytes=budget_bytes,
                      auto=SearchOptions(fixed), **RECIPE)
    assert 0 < caught.value.missing_bytes < 24 * MIB
    assert any("--micro-batch 8" in str(change["flags"]) for change in caught.value.changes)
    assert list(tmp_path.iterdir()) == []


def test_storages_of_frozen_weights_are_tried() -> None:
    def tried(frozen: FrozenStorage) -> list[str]:
        options = PackOptions(classes=2, micro_batches=(1,), bits=2, frozen=frozen)
        return [flags for flags, _ in cheaper._variants(options, blocks=1)]

    assert tried("fp32") == ["--frozen fp16", "--frozen int8", "--frozen int4"]
    assert tried("int8") == ["--frozen int4"]
    assert tried("int4") == []
