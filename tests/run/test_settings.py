from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from s2a_edge.run.hyperparameters import Hyperparameters
from s2a_edge.run.settings import FitSettings, differences
from s2a_edge.spec.errors import UsageError

SETTINGS = FitSettings(3, 1e-3, 0.5, 0.1, True, 7, Hyperparameters())


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"warmup_epochs": -0.1},
        {"warmup_epochs": 3.1},
        {"warmup_epochs": math.nan},
        {"label_smoothing": 1.5},
        {"seed": -1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(SETTINGS, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": -1.0},
        {"weight_decay": math.nan},
        {"max_norm": 0.0},
        {"momentum": 1.0},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"eps": 0.0},
    ],
    ids=str,
)
def test_hyperparameters_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="correct the hyperparameter"):
        Hyperparameters(**change)


def test_what_differs_is_named_with_both_values() -> None:
    other = dataclasses.replace(SETTINGS, lr=0.01, optimizer=Hyperparameters(momentum=0.5))
    assert differences(other, SETTINGS) == ["momentum 0.5 (was 0.9)", "lr 0.01 (was 0.001)"]
    assert differences(SETTINGS, SETTINGS) == []


def test_the_optimizer_graph_gets_bias_corrections_and_a_finite_clip() -> None:
    adamw = Hyperparameters(betas=(0.5, 0.75)).scalars("adamw", lr=0.1, step=1)
    assert (adamw["correction1"], adamw["correction2"]) == (0.75, 0.4375)
    assert adamw["clip"] == Hyperparameters().clip(1e30) == 1.0
    limited = Hyperparameters(max_norm=2.0)
    assert [limited.clip(norm) for norm in (1.0, 8.0)] == [1.0, 0.25]
    assert limited.scalars("sgd", lr=0.1, step=0, clip=0.25) == {
        "lr": 0.1,
        "weight_decay": 0.0,
        "clip": 0.25,
        "momentum": 0.9,
    }


def test_the_warm_up_may_be_a_part_of_an_epoch() -> None:
    lr = SETTINGS.schedule(steps_per_epoch=10)
    assert (lr.total_steps, lr.warmup_steps) == (30, 5)
