"""What may be asked of ``pack``: one table."""

from __future__ import annotations

from typing import Any

import pytest

from s2a_edge.pack.options import PackOptions
from s2a_edge.spec.errors import UsageError

LABELS = ("cat", "dog")


@pytest.mark.parametrize("given", [
    {}, {"bits": 2}, {"bits": 32}, {"micro_batches": (1, 2, 8), "effective_batch": 8},
    {"micro_batches": (3,), "effective_batch": 32}, {"adapters": ("head",)},
    {"adapters": ("head", "bias")}, {"optimizer": "sgd"}, {"attention": "recompute"},
    {"input_shape": (3, 224, 224)}, {"input_shape": (128,)}, {"seed": 7}, {"threads": 1},
    {"labels": (), "classes": 7}, {"classes": len(LABELS)}, {"adapters": ("full",)},
    {"adapters": ("lsb", "bias", "lrp"), "rank": 1, "reduce": 1, "blocks": "last:6"},
    {"adapters": ("lora", "bias"), "alpha": 0.5, "target_modules": "qkv"},
])
def test_what_is_accepted(given: dict[str, Any]) -> None:
    options = PackOptions(**{"labels": LABELS, **given})
    assert all(getattr(options, name) == value for name, value in given.items())


@pytest.mark.parametrize(("given", "where"), [
    ({"labels": ()}, "--classes"), ({"classes": 3}, "--classes"),
    ({"labels": (), "classes": 1}, "--classes"), ({"labels": ("cat",)}, "--classes"),
    ({"labels": ("cat", "dog", "cat")}, "--labels"), ({"labels": ("cat", "")}, "--labels"),
    ({"bits": 5}, "--bits"), ({"bits": 0}, "--bits"), ({"bits": 64}, "--bits"),
    ({"adapters": ()}, "--adapters"), ({"adapters": ("bias", "dora")}, "--adapters"),
    ({"adapters": ("full", "bias")}, "--adapters"), ({"rank": 0}, "--rank"),
    ({"reduce": 0}, "--reduce"), ({"alpha": 0.0}, "--alpha"), ({"blocks": " "}, "--blocks"),
    ({"target_modules": ""}, "--target-modules"),
    ({"optimizer": "lion"}, "--optimizer"), ({"loss": "hinge"}, "--loss"),
    ({"loss": "mse", "labels": (), "classes": 0}, "--classes"),
    ({"attention": "sometimes"}, "--attention"),
    ({"micro_batches": ()}, "--micro-batch"), ({"micro_batches": (0,)}, "--micro-batch"),
    ({"micro_batches": (-4, 4)}, "--micro-batch"), ({"micro_batches": (4, 4)}, "--micro-batch"),
    ({"micro_batches": (8,), "effective_batch": 4}, "--batch"),
    ({"effective_batch": 0}, "--batch"),
    ({"input_shape": ()}, "--input"), ({"input_shape": (3, 0, 4)}, "--input"),
    ({"seed": -1}, "--seed"), ({"threads": 0}, "--threads"), ({"threads": -2}, "--threads"),
])
def test_what_is_refused_and_by_which_flag(given: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError) as error:
        PackOptions(**{"labels": LABELS, **given})
    assert where in error.value.where
    assert error.value.exit_code == 2 and error.value.expected and error.value.got
