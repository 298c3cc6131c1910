"""Weights of one implementation under the names of another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tools.rename_weights import renamed


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_the_nth_tensor_gets_the_nth_name() -> None:
    theirs, model = _model().state_dict(), _model()
    made = renamed({f"other.{n}": t for n, t in enumerate(theirs.values())}, model)
    model.load_state_dict(made)
    for ours, tensor in zip(model.state_dict().values(), theirs.values(), strict=True):
        assert torch.equal(ours, tensor)


def test_what_does_not_fit_is_named() -> None:
    state = {f"other.{n}": t for n, t in enumerate(_model().state_dict().values())}
    with pytest.raises(ValueError, match="8 tensors, expected 9"):
        renamed(dict(list(state.items())[:-1]), _model())
    state["other.0"] = torch.zeros(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"other\.0 \[4, 3, 3, 3\], expected .* of 0\.weight"):
        renamed(state, _model())
